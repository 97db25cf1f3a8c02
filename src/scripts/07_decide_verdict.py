"""Does the persona come apart? Separable, entangled or underpowered, from what was done in each dimension's name.

    uv run python src/scripts/07_decide_verdict.py --profile organism
    uv run python src/scripts/07_decide_verdict.py --verdict-resamples 10000

Reads the control fine-tunes (02_finetune_controls, where there are any) and the steered answers of step 6; writes
results/decomposition_verdict.json with the rule and every number that it was applied to. Beside them stand a few
numbers of results/decomposition_geometry.json, which decide nothing. The rule is in
src/utils/decomposition/verdict.py; its error rates, on organisms, are measured by benchmarks/verdict.py.
"""

from collections.abc import Sequence

from src.pipelines.persona_study import CLUSTER, CONTROLS, STEER, VERDICT, has_geometry
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_json, save_json
from src.utils.cli import run_script
from src.utils.decomposition.cross_effects import Outcomes, matched_dose, outcomes_at
from src.utils.decomposition.geometry_report import geometry_summary
from src.utils.decomposition.report import format_verdict, verdict_record
from src.utils.decomposition.verdict import Rule, decide, smallest_own_effect


def main(arguments: Sequence[str]) -> None:
    run = begin_step(VERDICT, __doc__, arguments)
    if run is None:
        return
    settings, rule = run.config.verdict, Rule()
    evidence = lines_of_evidence(run, rule)
    verdict = decide(evidence, rule, settings.resamples, settings.plantings, settings.seed)
    smallest = {
        name: smallest_own_effect(outcomes, rule, settings.plantings, settings.seed)
        for name, outcomes in evidence.items()
    }
    rates = load_json(run.study.rates)["rates"]
    record = verdict_record(verdict, smallest, rates, run.config.profile, run.config.model.world)
    if has_geometry(run.study):
        record["geometry"] = geometry_summary(load_json(run.study.geometry, made_by=CLUSTER.name))
    save_json(record, run.study.verdict, run.provenance)
    print(format_verdict(record))
    print(run.study.verdict)


def lines_of_evidence(run: StepRun, rule: Rule) -> dict[str, Outcomes]:
    """Each line's outcomes: control fine-tunes, steering along their vectors, steering along the study's own."""
    study, judging = run.study, run.config.judging
    thresholds = (judging.em_threshold, judging.coherence_threshold)
    evidence = {}
    if study.has_controls:
        controls = load_frame(study.control_effects, made_by=CONTROLS.name)
        evidence["control fine-tunes"] = outcomes_at(controls, ["control"], 1.0, *thresholds)
    steered = load_frame(study.steering_effects, made_by=STEER.name)
    for name, kind in (("steering, control vectors", "control"), ("steering, the study's vectors", "dimension")):
        added = steered[(steered["mode"] == "add") | (steered["kind"] == "unsteered")]
        if ((added["kind"] == kind) & (added["coefficient"] > 0)).any():
            dose = matched_dose(added, [kind], judging.coherence_threshold, rule.least_coherence)
            evidence[name] = outcomes_at(added, [kind], dose, *thresholds)
    return evidence


if __name__ == "__main__":
    run_script(main)
