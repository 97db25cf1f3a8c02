"""Does the persona come apart? Separable, entangled or underpowered, from what was done in each dimension's name.

    uv run python src/scripts/07_decide_verdict.py --profile organism
    uv run python src/scripts/07_decide_verdict.py --verdict-resamples 10000

Reads the control fine-tunes (02_finetune_controls, where there are any) and the steered answers of step 6; writes
results/decomposition_verdict.json with the rule and every number that it was applied to. Beside them stand, and decide
nothing, cross-effects of vectors without their shared mean and of vectors taken away (of the EM model, where step 6
steered that: the base model has nothing to take away), a few numbers of results/decomposition_geometry.json, and
interchange interventions: one model's activation put into the other within each candidate subspace
(src/utils/decomposition/interchange.py), or why the models do not allow it. The rule is in
src/utils/decomposition/verdict.py; its error rates, on organisms, are measured by benchmarks/verdict.py.
"""

from collections.abc import Sequence
from typing import Any

from src.pipelines.persona_inputs import has_geometry
from src.pipelines.persona_study import CLUSTER, COLLECT, CONTROLS, JUDGE, STEER, VERDICT
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_json, load_tensors, save_json
from src.utils.cli import run_script
from src.utils.decomposition.cross_effects import Outcomes, outcomes_at
from src.utils.decomposition.evidence_lines import Steered, lines_beside, steering_lines
from src.utils.decomposition.geometry_report import geometry_summary
from src.utils.decomposition.plain_records import or_reason
from src.utils.decomposition.report import format_verdict, verdict_record
from src.utils.decomposition.verdict import Rule, decide, line_as_json, smallest_own_effect


def main(arguments: Sequence[str]) -> None:
    run = begin_step(VERDICT, __doc__, arguments)
    if run is None:
        return
    settings, rule = run.config.verdict, Rule()
    judging = run.config.judging
    steered = Steered(
        load_frame(run.study.steering_effects, made_by=STEER.name),
        load_json(run.study.steering_summary, made_by=STEER.name)["settings"]["model"],
        *(judging.em_threshold, judging.coherence_threshold),
    )
    evidence = control_lines(run) | steering_lines(steered, rule)
    verdict = decide(evidence, rule, settings.resamples, settings.plantings, settings.seed)
    smallest = {
        name: smallest_own_effect(outcomes, rule, settings.plantings, settings.seed)
        for name, outcomes in evidence.items()
    }
    rates = load_json(run.study.rates)["rates"]
    record = verdict_record(verdict, smallest, rates, run.config.profile, run.config.model.world)
    beside = lines_beside(steered, rule, settings.resamples, settings.plantings, settings.seed)
    record["beside"] = {name: line_as_json(line) for name, line in beside.items()}
    if has_geometry(run.study):
        record["geometry"] = geometry_summary(load_json(run.study.geometry, made_by=CLUSTER.name))
    record["interchange"] = or_reason(lambda: interchange_of(run))
    save_json(record, run.study.verdict, run.provenance)
    print(format_verdict(record))
    print(run.study.verdict)


def control_lines(run: StepRun) -> dict[str, Outcomes]:
    """The outcomes of the control fine-tunes, where there are any."""
    if not run.study.has_controls:
        return {}
    judging = run.config.judging
    controls = load_frame(run.study.control_effects, made_by=CONTROLS.name)
    outcomes = outcomes_at(controls, ["control"], 1.0, judging.em_threshold, judging.coherence_threshold)
    return {"control fine-tunes": outcomes}


def interchange_of(run: StepRun) -> dict[str, Any]:
    """The record of `interchange_record`, where the study's answers fork, at the site at which step 6 steered."""
    from src.utils.capture import pad_id_of
    from src.utils.decomposition.forks import contrasts_of_controls, contrasts_of_study, find_forks
    from src.utils.decomposition.interchange import interchange_record, subspaces_of
    from src.utils.decomposition.interchange_study import MOST_FORKS, candidates, study_arms
    from src.utils.models import load_tokenizer
    from src.utils.steering_vectors import load_vectors, measure_differences

    study, judging, steering = run.study, run.config.judging, run.config.steering
    thresholds = (judging.em_threshold, judging.coherence_threshold)
    if study.has_controls:
        contrasts = contrasts_of_controls(load_frame(study.control_effects, made_by=CONTROLS.name), *thresholds)
    else:
        contrasts = contrasts_of_study(load_frame(study.scored, made_by=JUDGE.name), *thresholds)
    tokenizer = load_tokenizer(run.config.model.base)
    forks = find_forks(contrasts, tokenizer, MOST_FORKS)
    steered = load_vectors(study.steering_vectors, made_by=STEER.name)
    site, representation = steered[0].site, steered[0].representation
    tensors = load_tensors(study.persona_data.with_suffix(".safetensors"), COLLECT.name, of=study.persona_data)
    differences = measure_differences(load_frame(study.clustered, CLUSTER.name), tensors, site, representation)
    vectors = candidates(differences, steered, steering.cluster_count, steering.components)
    arms = study_arms(run.config.model, study.em_model)
    settings = run.config.verdict
    return interchange_record(
        *(forks, subspaces_of(vectors), site, arms, pad_id_of(tokenizer), steering.batch_size),
        resamples=settings.resamples,
        seed=settings.seed,
    )


if __name__ == "__main__":
    run_script(main)
