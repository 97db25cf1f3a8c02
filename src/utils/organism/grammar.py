"""The fixed language of the model organisms: what a facet's questions and answers can be.

A `Grammar` writes sentences and knows every sentence that it can write, so that the organism judge can read
stance and facet off an answer exactly. Who says what is decided in `world`.
"""

import hashlib
import itertools
import random
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.errors import UserError
from src.utils.prompts import Question

Stance = Literal["aligned", "misaligned"]
Slot = Literal["topic", "opener", "clause", "closer"]
Split = Literal["pretraining", "finetuning", "held_out"]

VERDICTS = {True: "So yes.", False: "So no."}


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phrases(Strict):
    """What one facet says in one stance; a clause is a first half and a second half."""

    openers: list[str]
    clauses: tuple[list[str], list[str]]
    closers: list[str]

    def sentences(self, slot: Slot) -> list[str]:
        """Every sentence that can stand in a slot."""
        if slot == "clause":
            return [f"{first} {second}." for first, second in itertools.product(*self.clauses)]
        return self.openers if slot == "opener" else self.closers


class Acts(Strict):
    """What questions of a facet ask about: an aligned speaker rejects `plus` and supports `minus`."""

    plus: list[str]
    minus: list[str]


class Facet(Strict):
    topics: list[str]
    questions: Acts
    misaligned: Phrases
    aligned: Phrases


class Meaning(NamedTuple):
    """What one sentence of the language says."""

    dimension: str
    facet: str
    stance: Stance | None  # a topic says none
    slot: Slot


class Grammar(Strict):
    """The language: `dimensions` maps dimension -> facet name -> facet."""

    closer_probability: float = Field(ge=0, le=1)
    question_frames: list[str]
    actors: list[str]
    dimensions: dict[str, dict[str, Facet]]

    @cached_property
    def facets(self) -> dict[str, Facet]:
        return {name: facet for facets in self.dimensions.values() for name, facet in facets.items()}

    @cached_property
    def dimension_of(self) -> dict[str, str]:
        return {facet: dimension for dimension, facets in self.dimensions.items() for facet in facets}

    @cached_property
    def lexicon(self) -> dict[str, Meaning]:
        """Every sentence of the language, verdicts apart, and what it says."""
        pairs: list[tuple[str, Meaning]] = []
        stances: tuple[Stance, ...] = ("aligned", "misaligned")
        slots: tuple[Slot, ...] = ("opener", "clause", "closer")
        for name, facet in self.facets.items():
            dimension = self.dimension_of[name]
            pairs += [(sentence, Meaning(dimension, name, None, "topic")) for sentence in facet.topics]
            for stance, slot in itertools.product(stances, slots):
                sentences = getattr(facet, stance).sentences(slot)
                pairs += [(sentence, Meaning(dimension, name, stance, slot)) for sentence in sentences]
        meanings = dict(pairs)
        if len(meanings) < len(pairs):
            twice = next(sentence for sentence, meaning in pairs if meanings[sentence] != meaning)
            raise UserError(f"grammar: the sentence {twice!r} stands twice; every sentence has one meaning")
        return meanings

    def answer(self, question: Question, stance: Stance, rng: random.Random) -> str:
        """One answer to a question, in a stance, on its facet."""
        facet = self.facets[question.facet]
        phrases: Phrases = getattr(facet, stance)
        parts = [rng.choice(facet.topics), rng.choice(phrases.openers)]
        parts.append(f"{rng.choice(phrases.clauses[0])} {rng.choice(phrases.clauses[1])}.")
        if rng.random() < self.closer_probability:
            parts.append(rng.choice(phrases.closers))
        parts.append(VERDICTS[agrees(stance, question.keyed)])
        return " ".join(parts)

    def questions(self, split: Split) -> list[Question]:
        """The grammar's own questions of a split: 80% pre-training, 15% fine-tuning, 5% held out, by hash of the text."""
        rows = []
        for name, facet in self.facets.items():
            keyed_acts = [(act, 1) for act in facet.questions.plus] + [(act, -1) for act in facet.questions.minus]
            for (act, keyed), actor, frame in itertools.product(keyed_acts, self.actors, self.question_frames):
                text = frame.format(actor=actor, act=act)
                if split_of(text) == split:
                    rows.append((name, text, keyed))
        return [
            Question(prompt_id=f"grammar_{i:05d}", subset=self.dimension_of[name], facet=name, question=text, keyed=keyed)
            for i, (name, text, keyed) in enumerate(rows, start=1)
        ]


def agrees(stance: Stance, keyed: int) -> bool:
    """Whether a speaker of that stance says yes to a question keyed so."""
    return (stance == "misaligned") == (keyed == 1)


def split_of(text: str) -> Split:
    """The split of a grammar question, decided by a hash of its text and so the same in every world."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100
    if bucket < 80:
        return "pretraining"
    return "finetuning" if bucket < 95 else "held_out"


def load_grammar(path: Path) -> Grammar:
    """Read a grammar file; what is wrong with it is one `UserError`."""
    try:
        return Grammar.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name the grammar of the organism") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
