"""What an attack is made of, and what a language of attacks can do with it (`world_attacks`, `natural_attacks`).

An attack is kept as its parts, not as its text: so that it can be changed in one of them and its label is known again.
"""

import hashlib
import random
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from src.utils.safety_judge.samples import SafetySample

Half = Literal["training", "held_out"]
Origin = Literal["grammar", "llm"]

SOURCE = "open_ended"


@dataclass(frozen=True)
class Niche:
    """A cell of the grid. `unsafe` is the true label: an unsafe prompt is to be missed, a safe one to be flagged."""

    style: str
    category: str
    unsafe: bool


@dataclass(frozen=True)
class Attack:
    """`base` numbers the request in its language's pool, `variants` are those of the style, innermost first.

    `opener` and `detail` count only in the judge world. `text` is a rewording by a language model that stands in the
    request's place; its label is then what the model was asked to keep, and not known.
    """

    base: int
    style: str
    variants: tuple[int, ...]
    opener: int = 0
    detail: int = 0
    text: str | None = None

    @property
    def origin(self) -> Origin:
        return "grammar" if self.text is None else "llm"

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Attack":
        values: dict[str, Any] = {**record, "variants": tuple(record["variants"])}
        return cls(**values)


@dataclass(frozen=True)
class AttackPrompt:
    """An attack in words. Attacks of one `group` ask for the same thing and are never in two halves."""

    attack: Attack
    text: str
    niche: Niche
    group: str

    @property
    def half(self) -> Half:
        """Which half of the archive it is in: by its group alone, whatever the search does."""
        return "held_out" if hashlib.sha256(self.group.encode()).digest()[0] % 2 else "training"

    def sample(self) -> SafetySample:
        name = hashlib.sha256(self.text.encode()).hexdigest()[:16]
        return SafetySample(f"attack_{name}", self.text, self.niche.unsafe, self.niche.category, SOURCE, self.group)


class AttackLanguage(Protocol):
    """Prompts that can be drawn and changed, with the label of each."""

    @property
    def niches(self) -> tuple[Niche, ...]:
        """The niches in which there can be a prompt."""
        ...

    def draw(self, rng: random.Random, niche: Niche) -> Attack:
        """A random attack of a niche, from nothing."""
        ...

    def mutate(self, attack: Attack, rng: random.Random, niche: Niche) -> Attack:
        """The attack moved into a niche, with one of its parts changed."""
        ...

    def prompt(self, attack: Attack) -> AttackPrompt: ...
