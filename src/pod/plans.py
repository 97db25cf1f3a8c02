"""From the runner's options to the command that names a run, and what the pod needs for it."""

import argparse
from collections.abc import Sequence
from functools import partial

from src.pod.launch import Command
from src.pod.payload import (
    JUDGE_TRAIN,
    SCRIPT,
    STEPS,
    judge_train_payload,
    lacks_finetune,
    script_payload,
    step_payload,
)
from src.utils.errors import UserError

PAID_JUDGES = {"openrouter", "gemini"}
JUDGED = {
    "judge": "run src/scripts/04_judge_responses.py, or give --judge local",
    "steer": "give --judge local; run here after that, step 6 lets the paid one judge the answers that were fetched",
}


def plan_command(own: argparse.Namespace, options: Sequence[str]) -> Command | None:
    """The command of the chosen step; None, and a line, where its artefact is up to date here.

    Raises `UserError` for what would stop the step here too: wrong settings, a missing input, an artefact of another
    profile or world in the way.
    """
    given = [*options, *(["--force"] if own.force else [])]
    if own.step == SCRIPT:
        if not own.script or not own.output:
            raise UserError("--step script: name the script with --script, and what it writes with --output", 2)
        pack = partial(script_payload, own.script, given, own.input, own.output)
        pack()  # what is wrong with it is said before a pod is asked
        return Command(own.step, own.script, given, own.output, pack)
    if own.step == JUDGE_TRAIN:
        refuse_foreign_judge(given)
        payload = judge_train_payload(given)
        return Command(own.step, payload.script, given, payload.outputs, partial(judge_train_payload, given))
    return plan_step(own, given)


def refuse_foreign_judge(given: Sequence[str]) -> None:
    """`UserError` for settings that the training refuses, and for a judge in the way of the one that it makes."""
    from src.pipelines.judge_study import TRAIN, JudgeStudy
    from src.train_safety_judge import own_options
    from src.utils.manifests import refuse_foreign_overwrite
    from src.utils.safety_judge.arguments import parse_judge_arguments

    parsed = parse_judge_arguments("the safety judge's training on the pod", TRAIN.keys, given, own_options)
    config, study = parsed.config, JudgeStudy(parsed.config, parsed.output_dir)
    refuse_foreign_overwrite(study.judge, config.profile, config.model.world, parsed.force, "--output-dir")


def plan_step(own: argparse.Namespace, given: list[str]) -> Command | None:
    from src.pipelines.persona_study import Study
    from src.pipelines.runner import find_step
    from src.utils.cli import parse_arguments
    from src.utils.manifests import refuse_foreign_overwrite

    step = find_step(STEPS[own.step])
    parsed = parse_arguments(f"step {own.step} on the pod", step.keys, given)
    study = Study(parsed.config, own.results_dir, parsed.plots_dir)
    judges = [kind for kind, _ in parsed.config.judging.judges][: 1 if own.step == "steer" else None]
    if own.step in JUDGED and (asked := PAID_JUDGES & set(judges)):
        raise UserError(
            f"--step {own.step}: {asked.pop()} is asked from here, no key goes to a pod; {JUDGED[own.step]}", 2
        )
    artefact = step.artefact(study)
    refuse_foreign_overwrite(artefact, study.config.profile, study.config.model.world, own.force)
    if lacks_finetune(step, study):
        print(
            f"{study.finetuned}: is not there, and made on the pod first (name a model with --em-model to do without)"
        )
    elif not own.force and step.freshness(study, step.provenance(study)):
        print(f"{step.name}: {artefact} is up to date (--force makes it again)")
        return None
    payload = step_payload(step, study, given)
    return Command(own.step, payload.script, given, payload.outputs, partial(step_payload, step, study, given))
