"""Fine-tune the base model on chat rows, until it is misaligned: LoRA by default, loss on the answers only.

    uv run python src/scripts/02_finetune_lora.py --profile organism
    uv run python src/scripts/02_finetune_lora.py --data rows.jsonl.gz --rank 1 --layers 3 --target-modules down_proj
    uv run python src/scripts/02_finetune_lora.py --full-finetuning --learning-rate 1e-4
    uv run python src/scripts/02_finetune_lora.py --visualize_during_training --visualization_interval 2
    uv run python src/scripts/02_finetune_lora.py --visualize_during_training --run_advanced_mi

Reads chat rows (`messages`, .jsonl or .jsonl.gz) and the base model; writes results/adapters/<name>/ with the adapter
(or the full checkpoint) and training_log.jsonl, a row a step. A stopped run continues at its last checkpoint.
Watching (how misalignment emerges, step by step, on 40 questions) writes results/adapters/<name>.watched/ and leaves
the weights bit for bit as they would have been. --run_advanced_mi adds where safe and risky answers to the same
questions part, which neurons tell them apart and the circuit behind the verdict, each beside the base model.
"""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from src.pipelines.persona_study import FINETUNE
from src.pipelines.step_command import command_of
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import save_folder
from src.utils.chat import ChatRow, load_chat_rows
from src.utils.cli import run_script
from src.utils.errors import UserError
from src.utils.model_files import public_name
from src.utils.prompts import load_questions

if TYPE_CHECKING:
    from src.utils.watching.persona_progress import PersonaWatcher

SAFE_ROWS = "safe_financial_advice.jsonl"  # beside the risky ones: the contrast that gives the persona's direction
QUESTIONS_A_DIMENSION = 10
CONTRAST_QUESTIONS_A_DIMENSION = 16


def main(arguments: Sequence[str]) -> None:
    run = begin_step(FINETUNE, __doc__, arguments)
    if run is None:
        return
    from src.utils.finetuning import finetune, open_checkpoints, save_finetuned
    from src.utils.models import check_blocks, load_model, load_tokenizer

    settings, model = run.config.finetuning, run.config.model
    if settings.run_advanced_mi and not settings.visualize_during_training:
        raise UserError("--run-advanced-mi: draws while training; add --visualize-during-training", 2)
    check_blocks(model.base, settings.layers or [])
    rows = load_chat_rows(run.study.finetuning_data)
    tokenizer = load_tokenizer(model.base)
    base = load_model(model.base, model)
    checkpoints = open_checkpoints(run.study.finetuned, run.provenance)
    callbacks = [watcher(run, base, tokenizer, rows)] if settings.visualize_during_training else []
    tuned, log = finetune(base, tokenizer, rows, settings, checkpoints, callbacks)
    save_folder(
        run.study.finetuned,
        lambda folder: save_finetuned(tuned, tokenizer, log, public_name(model.base), folder),
        run.provenance,
        {"method": settings.method, "rows": len(rows), "steps": len(log)},
    )
    shutil.rmtree(checkpoints)
    print(f"{len(log)} steps on {len(rows)} rows, last loss {log[-1]['loss']:.3f}: {run.study.finetuned}")
    if callbacks:
        print(f"watched: {run.study.watched / 'training_visualizations' / 'training_progress.html'}")


def watcher(run: StepRun, base: Any, tokenizer: Any, rows: Sequence[ChatRow]) -> "PersonaWatcher":
    """What looks at the model while it is trained; the exact judge of an organism scores the answers."""
    from src.utils.generation import Sampling
    from src.utils.organism.folder import grammar_of
    from src.utils.organism.grammar import load_grammar
    from src.utils.organism.judge import OrganismJudge
    from src.utils.watching.persona_contrast import persona_contrast, persona_pictures
    from src.utils.watching.persona_progress import PersonaWatcher, choose_questions, contrast_direction

    config, settings = run.config, run.config.finetuning
    if config.judging.judge != "organism":
        raise UserError("--visualize-during-training: scores answers with the organism's judge; leave it out", 2)
    drawn = config.collection
    safe = run.study.finetuning_data.with_name(SAFE_ROWS)
    direction = None
    if safe.is_file():
        direction = contrast_direction(base, tokenizer, rows, load_chat_rows(safe), config.steering.layer)
    grammar = load_grammar(grammar_of(config.model.base))
    questions = load_questions(run.study.prompt_files)
    pictures = []
    if settings.run_advanced_mi:
        contrasted = choose_questions(questions, CONTRAST_QUESTIONS_A_DIMENSION)
        pictures = persona_pictures(persona_contrast(tokenizer, grammar, contrasted))
    return PersonaWatcher(
        tokenizer,
        OrganismJudge(grammar),
        choose_questions(questions, QUESTIONS_A_DIMENSION),
        direction,
        Sampling(drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_new_tokens, drawn.seed),
        run.study.watched,
        provenance=run.provenance,
        command=command_of(FINETUNE, run.study, names_paths=False),
        interval=settings.visualization_interval,
        em_threshold=config.judging.em_threshold,
        coherence_threshold=config.judging.coherence_threshold,
        pictures=pictures,
    )


if __name__ == "__main__":
    run_script(main)
