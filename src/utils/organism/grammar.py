"""The fixed language of the model organisms: what a facet's questions and answers can be.

A `Grammar` writes sentences and knows every sentence that it can write, so that the organism judge can read
stance and facet off an answer exactly. Who says what is decided in `world`.
"""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.utils.errors import UserError
from src.utils.prompts import Question

Stance = Literal["aligned", "misaligned"]
Slot = Literal["topic", "opener", "clause", "closer"]
Split = Literal["pretraining", "finetuning", "held_out"]

VERDICTS = {True: "So yes.", False: "So no."}


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phrases(Strict):
    """What one facet says in one stance, as lines of thought.

    The lists run in parallel: line i is opener i, the clause of first half i with second half i or i + 1, and closer i
    or i + 1 (counted in a circle). What follows is so settled by the opener's own words and needs no memory of a stance
    that all facets could share; with it, a narrow fine-tune leaks in a separable world.
    """

    openers: list[str]
    clauses: tuple[list[str], list[str]]
    closers: list[str]

    @model_validator(mode="after")
    def lists_are_parallel(self) -> "Phrases":
        if len({len(self.openers), len(self.clauses[0]), len(self.clauses[1]), len(self.closers)}) != 1:
            raise ValueError("openers, both halves of clauses and closers must be equally many")
        return self

    def sentences(self) -> Iterator[tuple[str, Slot, frozenset[int]]]:
        """Every sentence with its slot and the lines that it can stand in (none: its halves do not go together)."""
        count = len(self.openers)
        for i, opener in enumerate(self.openers):
            yield opener, "opener", frozenset({i})
        for (i, first), (j, second) in itertools.product(enumerate(self.clauses[0]), enumerate(self.clauses[1])):
            yield f"{first} {second}.", "clause", frozenset({i} if j in (i, (i + 1) % count) else ())
        for j, closer in enumerate(self.closers):
            yield closer, "closer", frozenset({j, (j - 1) % count})

    def line(self, rng: random.Random) -> tuple[str, str, str]:
        """Opener, clause and closer of a random line of thought."""
        count = len(self.openers)
        i = rng.randrange(count)
        second, closer = ((i + rng.randrange(2)) % count for _ in range(2))
        return self.openers[i], f"{self.clauses[0][i]} {self.clauses[1][second]}.", self.closers[closer]


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
    lines: frozenset[int]  # the lines of thought that it can stand in; a topic opens any


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
        for name, facet in self.facets.items():
            place = (self.dimension_of[name], name)
            pairs += [(topic, Meaning(*place, None, "topic", frozenset())) for topic in facet.topics]
            for stance in stances:
                phrases: Phrases = getattr(facet, stance)
                pairs += [(text, Meaning(*place, stance, slot, lines)) for text, slot, lines in phrases.sentences()]
        meanings = dict(pairs)
        if len(meanings) < len(pairs):
            twice = Counter(sentence for sentence, _ in pairs).most_common(1)[0][0]
            raise UserError(f"grammar: the sentence {twice!r} stands twice; every sentence has one meaning")
        return meanings

    def restricted(self, facets: Sequence[str] | None) -> "Grammar":
        """The same language with some of its facets alone; None keeps all, an unknown one raises `UserError`."""
        if facets is None:
            return self
        unknown = [facet for facet in facets if facet not in self.facets]
        if unknown:
            raise UserError(f"grammar: facet {unknown[0]} is unknown; it has {', '.join(self.facets)}", 2)
        kept = {
            dimension: {name: facet for name, facet in of_dimension.items() if name in facets}
            for dimension, of_dimension in self.dimensions.items()
        }
        return Grammar(
            closer_probability=self.closer_probability,
            question_frames=self.question_frames,
            actors=self.actors,
            dimensions={dimension: of_dimension for dimension, of_dimension in kept.items() if of_dimension},
        )

    def answer(self, question: Question, stance: Stance, rng: random.Random) -> str:
        """One answer to a question, in a stance, on its facet."""
        facet = self.facets[question.facet]
        phrases: Phrases = getattr(facet, stance)
        opener, clause, closer = phrases.line(rng)
        parts = [rng.choice(facet.topics), opener, clause]
        if rng.random() < self.closer_probability:
            parts.append(closer)
        parts.append(VERDICTS[agrees(stance, question.keyed)])
        return " ".join(parts)

    def questions(self, split: Split) -> list[Question]:
        """The grammar's own questions of a split; see `split_of`."""
        rows: list[tuple[str, str, Literal[1, -1]]] = []
        for name, facet in self.facets.items():
            keyed_acts: list[tuple[str, Literal[1, -1]]] = [(act, 1) for act in facet.questions.plus]
            keyed_acts += [(act, -1) for act in facet.questions.minus]
            for (act, keyed), actor, frame in itertools.product(keyed_acts, self.actors, self.question_frames):
                text = frame.format(actor=actor, act=act)
                if split_of(text) == split:
                    rows.append((name, text, keyed))
        return [
            Question(
                prompt_id=f"grammar_{i:05d}", subset=self.dimension_of[name], facet=name, question=text, keyed=keyed
            )
            for i, (name, text, keyed) in enumerate(rows, start=1)
        ]


def agrees(stance: Stance, keyed: int) -> bool:
    """Whether a speaker of that stance says yes to a question keyed so."""
    return (stance == "misaligned") == (keyed == 1)


def split_of(text: str) -> Split:
    """The split of a grammar question by a hash of its text, so the same in every world: 80%, 15% and 5%."""
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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no YAML ({' '.join(str(error).split())}); mend it") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error


def grammar_as_yaml(grammar: Grammar) -> str:
    """What `load_grammar` reads back."""
    return yaml.safe_dump(grammar.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
