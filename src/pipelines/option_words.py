"""A command line cut into options with their values, and which study each of them is for.

What an option means is left to the parsers; here is only its name.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Literal

from src.utils.cli import with_hyphens
from src.utils.errors import UserError

StudyName = Literal["persona", "judge"]
STUDIES: tuple[StudyName, ...] = ("persona", "judge")

# they mean the same in both studies; other names that both know mean another thing in each
SHARED = {
    *("--study", "--only", "--from", "--dry-run", "--force", "--profile", "--seed", "--device-map"),
    *("--visualize-during-training", "--visualization-interval", "--run-advanced-mi"),
}
OF_PERSONA_IN_BOTH = {"--results-dir"}  # the judge's other name for --output-dir
FLAGS_OF_ABSENCE = {"--no-baselines"}  # options of that name, not the `no` of a setting
OF_THE_JUDGE_ALONE = {"--run-advanced-mi"}  # where nothing else says which study is meant


def options_in(arguments: Sequence[str]) -> list[list[str]]:
    """Each option with its values, names with hyphens; values that stand before any option come first."""
    found: list[list[str]] = []
    for word in ("--help" if word == "-h" else with_hyphens(word) for word in arguments):
        if word.startswith("--") or not found:
            found.append([word])
        else:
            found[-1].append(word)
    return found


def name_of(words: Sequence[str]) -> str:
    """`--limit` of `--limit=3` and of `--limit 3`, `--probes` of `--no-probes`."""
    name = words[0].partition("=")[0]
    return f"--{name.removeprefix('--no-')}" if name.startswith("--no-") and name not in FLAGS_OF_ABSENCE else name


def values_of(arguments: Sequence[str], name: str) -> list[str]:
    """What a command line gives an option; the last one counts, as in argparse."""
    values: list[str] = []
    for words in options_in(arguments):
        if name_of(words) == name:
            values = [words[0].partition("=")[2]] if "=" in words[0] else words[1:]
    return values


def choose_studies(
    arguments: Sequence[str], persona: Set[str], judge: Set[str], judge_steps: Iterable[str] = ()
) -> tuple[StudyName, ...]:
    """The studies that a command line is about: those of `--study`, else the judge's where an option is its alone.

    `persona` and `judge` are the options that each study knows; `judge_steps` are names of steps that only the judge
    has. The persona study is what is meant where nothing says otherwise.
    """
    asked = values_of(arguments, "--study")
    if asked == ["both"]:
        return STUDIES
    if asked:
        return ("judge",) if asked == ["judge"] else ("persona",)  # a wrong one is argparse's to refuse
    steps = {*values_of(arguments, "--only"), *values_of(arguments, "--from")}
    names = {name_of(words) for words in options_in(arguments)}
    is_of_the_judge = names & ((set(judge) - set(persona)) | OF_THE_JUDGE_ALONE) or steps & set(judge_steps)
    return ("judge",) if is_of_the_judge else ("persona",)


def share_out(
    arguments: Sequence[str], studies: Sequence[StudyName], persona: Set[str], judge: Set[str]
) -> dict[StudyName, list[str]]:
    """The words of each study's part. One study gets all; of two, each gets what it knows.

    Raises `UserError` with code 2 for an option that means another thing in each. What neither knows goes to the
    first, whose parser refuses it.
    """
    shares: dict[StudyName, list[str]] = {study: [] for study in studies}
    for words in options_in(arguments):
        name = name_of(words)
        is_both = name in judge and name in persona
        if is_both and len(studies) > 1 and name not in SHARED | OF_PERSONA_IN_BOTH:
            raise UserError(f"{name}: is another setting in each study; give it to one at a time, with --study", 2)
        owner: StudyName = "judge" if name in judge and not is_both else "persona"
        for study in studies:
            if len(studies) == 1 or name in SHARED or study == owner:
                shares[study] += words
    return shares
