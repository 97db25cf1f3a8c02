"""The whole persona study: fine-tune, ask and record, judge, cluster, draw. Steps that are up to date are kept.

    uv run python run_full_pipeline.py                              # the organism: offline, no GPU, minutes
    uv run python run_full_pipeline.py --world separable --results-dir results/separable
    uv run python run_full_pipeline.py --profile qwen3_4b --memory 80gb --only 03
    uv run python run_full_pipeline.py --dry-run                    # what would run, and why

Ends with EM rates by dimension, cluster sizes, time and memory, and the path of the pictures' index.
"""

import argparse
from collections.abc import Sequence

from src.pipelines.persona_study import CLUSTER, COLLECT, JUDGE, STEPS, Step, Study
from src.pipelines.runner import choose_steps, format_measured, plan, run_steps
from src.pipelines.summary import summarise
from src.utils.cli import option_name, parse_arguments, run_script, with_hyphens
from src.utils.errors import UserError
from src.utils.manifests import refuse_foreign_overwrite
from src.utils.organism.folder import grammar_of

SHARED_NAMES = ("seed", "batch_size", "layers")  # in several sections: one --seed for all, the others by hand
SEED_KEYS = tuple(dict.fromkeys(key for step in STEPS for key in step.keys if key.endswith(".seed")))
NAMED_KEYS = {option_name(key): key for step in STEPS[::-1] for key in step.keys[::-1]}  # --limit: the first step's
KEYS = tuple(key for key in dict.fromkeys(reversed(NAMED_KEYS.values())) if key.split(".")[1] not in SHARED_NAMES)
OWN_FLAGS = ("--only", "--from", "--dry-run", "--force")


def add_options(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_argument_group("steps")
    steps.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps, by script name")
    steps.add_argument("--from", dest="start", metavar="STEP", help="begin with this step")
    steps.add_argument("--dry-run", action="store_true", help="say what would run and why, and run nothing")


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(__doc__ or "", KEYS, arguments, add_options, SEED_KEYS)
    study = Study(parsed.config, parsed.results_dir, parsed.plots_dir)
    steps = choose_steps(parsed.own.only, parsed.own.start)
    check_plan(study, steps)
    for step in steps:
        refuse_foreign_overwrite(step.artefact(study), parsed.config.profile, parsed.config.model.world, parsed.force)
    if parsed.own.dry_run:
        for decision in plan(steps, study, parsed.force):
            print(f"{decision.step.name:<26} {'run ' if decision.runs else 'keep'}  {decision.reason}")
        return
    measured = run_steps(steps, study, for_steps(arguments), parsed.force)
    print(f"\n{summarise(study)}\n\n{format_measured(measured)}\n\npictures: {study.index}")


def check_plan(study: Study, steps: Sequence[Step]) -> None:
    """Find before the first step what would stop a later one."""
    clustering, collection = study.config.clustering, study.config.collection
    if {COLLECT, CLUSTER} <= set(steps) and clustering.layer not in collection.layers:
        kept = " ".join(map(str, collection.layers))
        raise UserError(f"--layer {clustering.layer}: step 3 puts layers {kept} into the frame; choose one of them", 2)
    if JUDGE in steps and study.config.judging.judge == "organism":
        grammar_of(study.config.model.base)


def for_steps(arguments: Sequence[str]) -> list[str]:
    """The command line without the runner's own options and their values."""
    words: list[str] = []
    is_own = False
    for word in map(with_hyphens, arguments):
        if word.startswith("--"):
            is_own = word.partition("=")[0] in OWN_FLAGS
        if not is_own:
            words.append(word)
    return words


if __name__ == "__main__":
    run_script(main)
