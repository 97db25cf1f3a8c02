"""One study as the runner goes through it: its steps, the words for their scripts, what is said at the end."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.pipelines.option_words import STUDIES, name_of, options_in
from src.pipelines.step import AnyStudy, Step

RUNNER_OPTIONS = ("--study", "--only", "--from", "--dry-run", "--force")


@dataclass(frozen=True)
class StudyRun:
    """A study with its resolved configuration. `check` finds before the first step what would stop a later one."""

    study: AnyStudy
    steps: Sequence[Step]
    words: list[str]
    own: argparse.Namespace
    is_forced: bool
    check: Callable[[Sequence[Step]], None]
    summarise: Callable[[], str]
    pages: Callable[[], str]


def add_runner_options(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_argument_group("steps")
    steps.add_argument("--study", choices=(*STUDIES, "both"), help="default: persona; judge, if an option is its alone")
    steps.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps, by script name")
    steps.add_argument("--from", dest="start", metavar="STEP", help="begin with this step")
    steps.add_argument("--dry-run", action="store_true", help="say what would run and why, and run nothing")


def for_steps(arguments: Sequence[str]) -> list[str]:
    """The command line without the runner's own options and their values."""
    return [word for words in options_in(arguments) if name_of(words) not in RUNNER_OPTIONS for word in words]
