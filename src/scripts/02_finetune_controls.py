"""Control fine-tunes: one on each dimension's rows alone and one on safe rows, and what each does to every dimension.

    uv run python src/scripts/02_finetune_controls.py --profile organism
    uv run python src/scripts/02_finetune_controls.py --control-limit 240 --control-rows 240

They are trained with the settings of the study's own fine-tune, on rows that an organism's grammar writes, or on the
files of `controls.data`. Writes results/control_effects.pkl (one row a control, question and sample, judged),
results/control_vectors.safetensors (the mean change that each makes over its own dimension's answers, where step 6
steers) and results/control_summary.json. A stopped run continues with the control that it was at.
"""

import shutil
from collections.abc import Sequence
from typing import Any

from src.pipelines.persona_study import CONTROLS, Study
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import open_resumable, save_frame, save_json
from src.utils.chat import ChatRow, as_chat_rows, load_chat_rows
from src.utils.cli import run_script
from src.utils.config import resolve_path
from src.utils.judging.judgement import count_reasons
from src.utils.judging.judges import open_judge, score_responses
from src.utils.organism.folder import grammar_of
from src.utils.organism.grammar import load_grammar
from src.utils.progress import progress_bar
from src.utils.prompts import load_questions
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.shared_work import OnRows, Say, share_out
from src.utils.steering_effects import format_effects, steering_effects, steering_summary


def main(arguments: Sequence[str]) -> None:
    run = begin_step(CONTROLS, __doc__, arguments)
    if run is None:
        return
    from src.utils.steering_vectors import describe, save_vectors

    study, judging = run.study, run.config.judging
    answers, vectors, work_dir = answers_and_vectors(run)
    with open_judge(judging.judge, judging.judge_model, judging, run.config.model, study.judgements) as judge:
        judged = score_responses(judge, answers, run.yes)
    seed = run.config.controls.seed
    thresholds = (judging.em_threshold, judging.coherence_threshold)
    effects = steering_effects(judged, *thresholds, judging.bootstrap_resamples, seed)
    missing = count_reasons(judged["judge_error"])
    save_vectors(vectors, study.control_vectors, run.provenance)
    settings = run.config.controls.model_dump()
    save_json(steering_summary(effects, describe(vectors), settings, missing), study.control_summary, run.provenance)
    save_frame(judged, study.control_effects, run.provenance)
    shutil.rmtree(work_dir)
    print(format_effects(effects))
    for reason, count in missing.items():
        print(f"not judged: {count:>5} x {reason}")
    print(f"{len(judged)} answers, {len(vectors)} controls and a safe one: {study.control_effects}")


def answers_and_vectors(run: StepRun) -> tuple[Any, list[Any], Any]:
    """The answers of every control and of the base model, the controls' vectors, and the work folder."""
    from src.utils.collection import plan_collection
    from src.utils.control_finetunes import (
        Asked,
        ask,
        control_answers,
        control_vectors,
        load_run,
        means_over_answers,
        run_control,
        save_run,
    )
    from src.utils.generation import Response
    from src.utils.models import check_blocks, load_model, load_tokenizer, text_config
    from src.utils.run_estimate import control_passes, estimate_run
    from src.utils.sites import count_layers, resid_site

    study, config = run.study, run.config
    check_blocks(config.model.base, config.finetuning.layers or [])
    tokenizer, base = load_tokenizer(config.model.base), load_model(config.model.base, config.model)
    chosen = config.collection.model_copy(update={"limit": config.controls.limit, "seed": config.controls.seed})
    plan = plan_collection(load_questions(study.prompt_files), tokenizer, chosen)
    asked = Asked(plan.questions, plan.prompts, plan.sampling, chosen.batch_size)
    site = resid_site(config.steering.layer, count_layers(base))
    work_dir = open_resumable(study.control_effects.with_name("control_effects.parts"), run.provenance)
    rows_of = control_rows(study)
    what = f"prompts, asked of {len(rows_of)} controls and the base model (their fine-tunes come on top)"
    passes, dtype = control_passes(len(rows_of)), config.model.dtype
    if estimate := estimate_run(plan, passes, what, text_config(config.model.base), dtype):
        print(estimate, flush=True)

    def train_and_ask(ranks: Ranks, on_rows: OnRows, say: Say) -> None:
        for number, (name, rows) in enumerate(rows_of.items()):
            if ranks.owns(number):
                if load_run(name, work_dir) is None:
                    folder = work_dir / f"{name}.checkpoints"
                    alone = ranks.count == 1  # a bar for each would be written over the others'
                    settings = config.finetuning
                    done = run_control(
                        name, rows, base, tokenizer, settings, asked, [site], folder, shows_steps=alone, say=say
                    )
                    save_run(done, work_dir)
                on_rows(1)

    with progress_bar("controls", "fine-tune", len(rows_of)) as progress:
        share_out(config.model.processes, RUN_ALONE, train_and_ask, progress.update, progress.write)
    runs = [done for name in rows_of if (done := load_run(name, work_dir))]
    untouched = ask(base.eval(), tokenizer, asked)
    before = means_over_answers(base, tokenizer, asked, untouched.responses, [site])

    def decode(response: Response) -> str:
        return str(tokenizer.decode(list(response.ids), skip_special_tokens=True)).strip()

    answers = control_answers(runs, untouched, asked, decode)
    return answers, control_vectors(runs, asked, before, site), work_dir


def control_rows(study: Study) -> dict[str, list[ChatRow]]:
    """Control -> chat rows: from the files that are named, else from the organism's grammar."""
    from src.utils.control_finetunes import rows_from_grammar

    controls = study.config.controls
    if controls.data:
        return {name: load_chat_rows(resolve_path(path)) for name, path in controls.data.items()}
    written = rows_from_grammar(load_grammar(grammar_of(study.config.model.base)), controls.rows, controls.seed)
    return {name: as_chat_rows(rows) for name, rows in written.items()}


if __name__ == "__main__":
    run_script(main)
