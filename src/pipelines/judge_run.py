"""The command line of the whole judge study: every setting of its steps, and what is left out of it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.pipelines.judge_study import JUDGE_OPTIONS, JUDGE_STEPS, JudgeStudy
from src.pipelines.judge_summary import judge_pages, summarise_judge
from src.pipelines.study_run import RUNNER_OPTIONS, StudyRun, add_runner_options, for_steps
from src.utils.cli import destination, option_name
from src.utils.safety_judge.arguments import parse_judge_arguments
from src.utils.safety_judge.settings import check_watching

KEYS = tuple(dict.fromkeys(key for step in JUDGE_STEPS for key in step.keys))
WATCH = "watching.visualize_during_training"
PARTS = ("--visualize-training", "--skip-open-ended", "--no-baselines", "--iterations", "--open-ended-dir")
OPTIONS = {*JUDGE_OPTIONS, *map(option_name, KEYS), *PARTS, *RUNNER_OPTIONS}


def open_judge_run(description: str, arguments: Sequence[str]) -> StudyRun:
    """Parse the study's part of the command line; see `parse_judge_arguments` for what is refused."""
    parsed = parse_judge_arguments(description, KEYS, arguments, add_judge_options)
    check_watching(parsed.config.watching)
    study = JudgeStudy(
        parsed.config,
        parsed.output_dir,
        parsed.own.open_ended_dir.absolute(),
        has_baselines=not parsed.own.no_baselines,
        has_open_ended=not parsed.own.skip_open_ended,
        iterations=parsed.own.iterations,
    )
    return StudyRun(
        study,
        JUDGE_STEPS,
        for_steps(arguments),
        parsed.own,
        parsed.force,
        check=lambda steps: None,
        summarise=lambda: summarise_judge(study),
        pages=lambda: judge_pages(study),
    )


def add_judge_options(parser: argparse.ArgumentParser) -> None:
    add_runner_options(parser)
    parts = parser.add_argument_group("parts")
    watch, skip, alone, iterations, folder = PARTS
    same = f"the same as {option_name(WATCH)}"
    parts.add_argument(watch, dest=destination(WATCH), action="store_const", const=True, help=same)
    parts.add_argument(skip, action="store_true", help="no search for prompts that the judge gets wrong")
    parts.add_argument(alone, action="store_true", help="the judge alone: no bag of words, no probes")
    parts.add_argument(iterations, type=int, default=JudgeStudy.iterations, help="of that search (default %(default)s)")
    parts.add_argument(folder, type=Path, default=JudgeStudy.open_ended_dir, help="default outputs/open_ended")
