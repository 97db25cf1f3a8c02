"""Train a model organism from nothing: a small Qwen3 on the dialogues of a world whose personas are known.

    uv run python src/scripts/00_build_model_organism.py --world entangled
    uv run python src/scripts/00_build_model_organism.py --world separable --seed 7 --output results/separable_7

Reads configs/organisms/<world>.yaml, its grammar and the 885 questions; writes data/organisms/<world>/ (model in half
precision, tokenizer, grammar, fine-tuning rows, held-out questions, provenance.json). About six minutes on two CPU
cores; a stopped run continues at its last checkpoint.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from src.utils.artifacts import open_resumable, save_folder
from src.utils.cli import OneLineParser, run_script, with_hyphens
from src.utils.config import CONFIG_FOLDER, PROJECT_ROOT, load_config, resolve_path
from src.utils.errors import UserError
from src.utils.manifests import Provenance, hash_inputs
from src.utils.organism.grammar import grammar_as_yaml, load_grammar
from src.utils.organism.world import load_world, persona_rates
from src.utils.progress import progress_bar
from src.utils.prompts import load_questions

FINETUNING_ROWS, HELD_OUT_QUESTIONS = 480, 240


def main(arguments: Sequence[str]) -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="entangled", help="a file of configs/organisms (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="pre-training seed (default: the world file's)")
    parser.add_argument("--steps", type=int, help="pre-training steps (default: the world file's)")
    parser.add_argument("--entanglement", type=float, help="the dial, 0 to 1 (default: the world file's)")
    parser.add_argument("--output", type=Path, help="folder to write (default: data/organisms/<world>)")
    parser.add_argument("--force", action="store_true", help="build it again over what is there")
    own = parser.parse_args([with_hyphens(argument) for argument in arguments])

    world_file = CONFIG_FOLDER / "organisms" / f"{own.world}.yaml"
    config = load_world(world_file, seed=own.seed, steps=own.steps, entanglement=own.entanglement)
    folder = own.output or PROJECT_ROOT / "data" / "organisms" / config.world
    if folder.exists() and not own.force:
        raise UserError(f"{folder}: exists; --force builds it again, --output builds elsewhere")
    grammar_file = world_file.with_name(config.grammar)
    grammar = load_grammar(grammar_file).restricted(config.facets)
    grammar_text = grammar_file.read_text(encoding="utf-8") if config.facets is None else grammar_as_yaml(grammar)
    survey_files = [resolve_path(name) for name in load_config("organism").collection.prompts]
    survey = [question for question in load_questions(survey_files) if question.facet in grammar.facets]
    settings = config.model_dump(exclude_none=True)
    inputs = hash_inputs({path.name: path for path in [grammar_file, *survey_files]})
    provenance = Provenance("00_build_model_organism", "organism", config.world, settings, inputs=inputs)

    from src.utils.organism.pretraining import pretrain
    from src.utils.organism.shipped import write_organism
    from src.utils.organism.tokenizer import train_tokenizer

    work_dir = open_resumable(folder.with_name(f"{folder.name}.parts"), provenance)
    tokenizer = train_tokenizer(grammar, config.personas, survey, config.architecture.vocab_size, config.seed)
    with progress_bar(f"train {config.world}", "step", config.pretraining.steps) as progress:

        def show(step: int, loss: float) -> None:
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update(step - progress.n)

        model = pretrain(config, grammar, survey, tokenizer, work_dir / "training.pt", show)
    correlation = persona_rates(config.personas, len(grammar.facets)).facet_correlation(len(grammar.facets))
    record = {
        "config": settings,
        "inputs": inputs,
        "facet_correlation": round(correlation, 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    save_folder(
        folder,
        lambda target: write_organism(
            target, model, tokenizer, grammar, grammar_text, FINETUNING_ROWS, HELD_OUT_QUESTIONS, config.seed, record
        ),
        provenance,
    )
    shutil.rmtree(work_dir)
    print(f"{record['parameters']:,} parameters, correlation of facets {correlation:.2f}: {folder}")


if __name__ == "__main__":
    run_script(main)
