"""Push a model along the measured directions of the persona, and see what that does to its answers.

    uv run python src/scripts/06_steer_personas.py --profile organism
    uv run python src/scripts/06_steer_personas.py --vectors cluster principal_component --coefficients -8 4 8 12
    uv run python src/scripts/06_steer_personas.py --steered-model em --coefficients -4 -2 -1
    uv run python src/scripts/06_steer_personas.py --steered-model em --mode ablate --everywhere
    uv run python src/scripts/06_steer_personas.py --profile qwen3_4b --steering-layer 25 --positions response

Reads the activations of step 3 (and the clusters of step 5 for --vectors cluster); writes results/steering_effects.pkl
(one row a vector, coefficient, question and sample, judged), results/steering_vectors.safetensors and
results/steering_summary.json (rates by dimension with 95% intervals over prompts). There is always an unsteered arm,
and random directions as long as the longest vector. Layer l is the input of block l: TransformerLens's
blocks.l.hook_resid_pre, Hugging Face's hidden_states[l]. A stopped run continues at the first missing batch; what the
models said stays in results/steering_answers.pkl, so that another judge or threshold does not ask them again.
"""

import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from src.pipelines.persona_inputs import needs_clusters, needs_controls
from src.pipelines.persona_settings import without_judging
from src.pipelines.persona_study import (
    CLUSTER,
    COLLECT,
    CONTROLS,
    STEER,
)
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_tensors, open_resumable, save_frame, save_json
from src.utils.cli import run_script
from src.utils.judging.judgement import count_reasons
from src.utils.judging.judges import open_judge, score_responses
from src.utils.manifests import is_fresh
from src.utils.model_files import is_adapter
from src.utils.progress import progress_bar
from src.utils.prompts import Question
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.shared_work import OnRows, Say, share_out
from src.utils.steering_effects import format_effects, length_of_randoms, steering_effects, steering_summary

if TYPE_CHECKING:
    from src.utils.sites import AnyModel
    from src.utils.steering_vectors import SteeringVector


def main(arguments: Sequence[str]) -> None:
    run = begin_step(STEER, __doc__, arguments)
    if run is None:
        return
    from src.utils.steering_vectors import describe, save_vectors

    study, judging, settings = run.study, run.config.judging, run.config.steering
    vectors = measured_vectors(run)
    answers = steered_answers(run, vectors)
    with open_judge(judging.judge, judging.judge_model, judging, run.config.model, study.judgements) as judge:
        judged = score_responses(judge, answers, run.yes)
    effects = steering_effects(
        judged, judging.em_threshold, judging.coherence_threshold, judging.bootstrap_resamples, settings.seed
    )
    missing = count_reasons(judged["judge_error"])
    save_vectors(vectors, study.steering_vectors, run.provenance)
    described = describe(vectors)
    summary = steering_summary(effects, described, settings.model_dump(), missing)
    save_json(summary, study.steering_summary, run.provenance)
    save_frame(judged, study.steering_effects, run.provenance)
    print(format_effects(effects))
    if settings.mode == "add":
        print(f"random directions: {length_of_randoms(described)}")
    for reason, count in missing.items():
        print(f"not judged: {count:>5} x {reason}")
    print(f"{len(judged)} answers, {len(vectors)} vectors: {study.steering_effects}")


def measured_vectors(run: StepRun) -> "list[SteeringVector]":
    """The vectors of the settings, from the activations of step 3."""
    from src.utils.models import check_layers, text_config
    from src.utils.sites import resid_site
    from src.utils.steering_vectors import load_vectors, make_vectors, measure_differences

    study, settings = run.study, run.config.steering
    check_layers(run.config.model.base, [settings.layer])
    source = (study.clustered, CLUSTER.name) if needs_clusters(study) else (study.persona_data, COLLECT.name)
    frame = load_frame(*source)
    tensors = load_tensors(study.persona_data.with_suffix(".safetensors"), COLLECT.name, of=study.persona_data)
    site = resid_site(settings.layer, text_config(run.config.model.base).num_hidden_layers)
    controls = load_vectors(study.control_vectors, CONTROLS.name) if needs_controls(study) else []
    return make_vectors(measure_differences(frame, tensors, site, settings.representation), settings, controls)


def steered_answers(run: StepRun, vectors: "Sequence[SteeringVector]") -> pd.DataFrame:
    """What the model says under every vector and coefficient; what an earlier run was told is taken from there."""
    study, provenance = run.study, without_judging(run.provenance)
    if not run.force and is_fresh(study.steering_answers, provenance):
        return load_frame(study.steering_answers)
    from src.utils.models import load_tokenizer, text_config
    from src.utils.run_estimate import STEERED, estimate_run
    from src.utils.steering_grid import answers_frame, plan_grid, run_grid

    tokenizer = load_tokenizer(run.config.model.base)
    asked = load_frame(study.persona_data, COLLECT.name)[list(Question.model_fields)].drop_duplicates("prompt_id")
    questions = [Question(**{str(name): value for name, value in row.items()}) for row in asked.to_dict("records")]
    grid = plan_grid(questions, tokenizer, vectors, run.config.steering, run.config.collection)
    model = run.config.model
    if estimate := estimate_run(grid, STEERED, "steered answers", text_config(model.base), model.dtype):
        print(estimate, flush=True)
    work_dir = open_resumable(study.steering_effects.with_name("steering_effects.parts"), provenance)

    def steer(ranks: Ranks, on_rows: OnRows, say: Say) -> None:
        run_grid(grid, lambda: steered_model(run), tokenizer, work_dir, on_rows, ranks, say)

    with progress_bar("steer", "answer", len(grid.prompts)) as progress:
        share_out(model.processes, RUN_ALONE, steer, progress.update, progress.write)
    answers = answers_frame(grid, tokenizer, work_dir)
    save_frame(answers, study.steering_answers, provenance)
    shutil.rmtree(work_dir)
    return answers


def steered_model(run: StepRun) -> "AnyModel":
    from src.utils.models import check_checkpoint_fits, load_adapter, load_model

    model, em_model = run.config.model, run.study.em_model
    if run.config.steering.model == "base":
        return load_model(model.base, model)
    if is_adapter(em_model):
        return load_adapter(load_model(model.base, model), em_model)
    check_checkpoint_fits(model.base, em_model)
    return load_model(em_model, model)


if __name__ == "__main__":
    run_script(main)
