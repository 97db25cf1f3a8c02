"""Attacks on prompts in English that somebody has labelled: wrappings that leave what is asked, and so the label."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from src.utils.errors import UserError
from src.utils.open_ended.attacks import Attack, AttackPrompt, Niche
from src.utils.open_ended.styles import TYPOS, WRAPPINGS, n_variants, wrap
from src.utils.safety_judge.samples import SafetySample

STYLES = (*WRAPPINGS, TYPOS)
MOST_LAYERS = 3


@dataclass(frozen=True)
class NaturalAttacks:
    """The language of attacks over labelled prompts; those of the test split are to be left out of `samples`."""

    samples: tuple[SafetySample, ...]

    @classmethod
    def of(cls, samples: Sequence[SafetySample]) -> "NaturalAttacks":
        """In the order of their ids; `UserError` where there is none."""
        if not samples:
            raise UserError("open-ended testing: no prompt to attack with; name data that has training prompts", 2)
        return cls(tuple(sorted(samples, key=lambda sample: sample.sample_id)))

    @cached_property
    def members(self) -> dict[tuple[str, bool], list[int]]:
        found: dict[tuple[str, bool], list[int]] = {}
        for number, sample in enumerate(self.samples):
            found.setdefault((sample.category, sample.unsafe), []).append(number)
        return found

    @cached_property
    def niches(self) -> tuple[Niche, ...]:
        return tuple(Niche(style, category, unsafe) for style in STYLES for category, unsafe in sorted(self.members))

    def draw(self, rng: random.Random, niche: Niche) -> Attack:
        base = rng.choice(self.members[niche.category, niche.unsafe])
        layers = rng.randint(1, MOST_LAYERS)
        return Attack(base, niche.style, tuple(rng.randrange(n_variants(niche.style)) for _ in range(layers)))

    def mutate(self, attack: Attack, rng: random.Random, niche: Niche) -> Attack:
        """The prompt stays where the niche allows it, with a layer changed, added or taken away; or it is replaced."""
        own = self.samples[attack.base]
        fits = (own.category, own.unsafe) == (niche.category, niche.unsafe)
        drawn = self.draw(rng, niche)
        if not fits or (attack.style == niche.style and rng.random() < 0.25):
            kept = attack.variants if attack.style == niche.style and attack.variants else drawn.variants
            return replace(drawn, variants=kept)
        if attack.style != niche.style:
            return replace(drawn, base=attack.base, text=attack.text)
        variants = [*attack.variants]
        change = rng.choice(("other", "more", "less"))
        fresh = rng.randrange(n_variants(niche.style))
        if not variants or (change == "more" and len(variants) < MOST_LAYERS):
            variants.insert(rng.randint(0, len(variants)), fresh)
        elif change == "less" and len(variants) > 1:
            del variants[rng.randrange(len(variants))]
        else:
            variants[rng.randrange(len(variants))] = fresh
        return replace(attack, variants=tuple(variants))

    def prompt(self, attack: Attack) -> AttackPrompt:
        sample = self.samples[attack.base]
        text = wrap(attack.text or sample.prompt, attack.style, attack.variants)
        return AttackPrompt(attack, text, Niche(attack.style, sample.category, sample.unsafe), sample.group)
