"""The two languages of attacks, on the judge's world and on natural requests, and a judge that knows nothing."""

import random
from collections.abc import Sequence
from functools import cache

import numpy as np

from src.utils.open_ended.attacks import AttackLanguage, AttackPrompt
from src.utils.open_ended.natural_attacks import NaturalAttacks
from src.utils.open_ended.world_attacks import WorldAttacks
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.world import load_judge_world


@cache
def world_attacks() -> WorldAttacks:
    return WorldAttacks(load_judge_world())


@cache
def natural_attacks() -> NaturalAttacks:
    samples = [
        SafetySample(
            f"n{number:03d}", f"Request {number} about <b>something</b>.", number % 2 == 1, f"topic {number % 3}",
            "test", f"pair-{number // 2}",
        )
        for number in range(60)
    ]  # fmt: skip
    return NaturalAttacks.of(samples)


LANGUAGES = [world_attacks, natural_attacks]


def drawn(language: AttackLanguage, count: int, seed: int = 0) -> list[AttackPrompt]:
    rng = random.Random(seed)
    return [language.prompt(language.draw(rng, rng.choice(language.niches))) for _ in range(count)]


def noise(prompts: Sequence[AttackPrompt]) -> np.ndarray:
    """A judge that knows nothing, and says the same of a text every time."""
    return np.array([random.Random(one.text).gauss(0, 1) for one in prompts])
