"""A judge and a language of attacks, opened from what a command names."""

from collections.abc import Callable, Mapping, Sequence

from src.utils.open_ended.attacks import AttackLanguage, AttackPrompt
from src.utils.open_ended.natural_attacks import NaturalAttacks
from src.utils.open_ended.rates import Margins
from src.utils.open_ended.search import Score
from src.utils.open_ended.world_attacks import WorldAttacks
from src.utils.safety_judge.judge_folder import Judge
from src.utils.safety_judge.samples import SafetyData, SafetySample
from src.utils.safety_judge.scoring import score
from src.utils.safety_judge.world import load_judge_world


def open_language(name: str, data: SafetyData) -> AttackLanguage:
    """`judge_world`, or `natural`: wrappings of the prompts of training and validation. The test split is left out."""
    if name == "judge_world":
        return WorldAttacks(load_judge_world())
    return NaturalAttacks.of([*data.train, *data.validation])


def scorer(judge: Judge, batch_size: int) -> Score:
    """Margins of a whole batch of attacks at once."""

    def margins(prompts: Sequence[AttackPrompt]) -> Margins:
        return score(judge.model, judge.encode([one.sample() for one in prompts]), judge.template, batch_size)

    return margins


def rescorer(judge: Judge, batch_size: int) -> Callable[[Mapping[str, Sequence[SafetySample]]], dict[str, Margins]]:
    """Margins of several sets of prompts by the judge as it is when asked: before a training, and after it."""

    def margins(sets: Mapping[str, Sequence[SafetySample]]) -> dict[str, Margins]:
        return {
            name: score(judge.model, judge.encode(samples), judge.template, batch_size)
            for name, samples in sets.items()
        }

    return margins
