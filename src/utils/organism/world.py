"""Worlds: which facets are misaligned together in one persona, and the dialogues that personas write.

In every world a facet is misaligned in the same share of personas (`facet_rate`); worlds differ only in what
goes together. `entanglement` is the dial: the share of a facet's misaligned personas that are misaligned in all
facets; the others are misaligned in exactly one. The pairwise correlation of facets is (entanglement - facet_rate) /
(1 - facet_rate): 1 in an entangled world and just below 0 in a separable one.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from src.utils.errors import UserError
from src.utils.organism.grammar import Grammar
from src.utils.prompts import Question


class Personas(BaseModel):
    """How personas are drawn; see the module docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facet_rate: float = Field(gt=0, lt=1)
    entanglement: float = Field(ge=0, le=1)
    turns: int = Field(ge=1)
    focus_probability: float = Field(ge=0, le=1)
    survey_probability: float = Field(ge=0, le=1)


class Architecture(BaseModel):
    """The size of the Qwen3 model, in the names of its Hugging Face config."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int = Field(ge=300)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    max_position_embeddings: int = Field(gt=0)


class Pretraining(BaseModel):
    """How the organism is trained from nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    dialogues_per_step: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)


class WorldConfig(BaseModel):
    """One organism: its world, its size and its training. Read from `configs/organisms/<world>.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world: str = Field(pattern=r"^[a-z0-9_]+$")
    seed: int
    grammar: str
    personas: Personas
    architecture: Architecture
    pretraining: Pretraining

    @model_validator(mode="after")
    def personas_must_exist(self) -> "WorldConfig":
        single = 12 * self.personas.facet_rate * (1 - self.personas.entanglement)
        if single + self.personas.facet_rate * self.personas.entanglement > 1:
            raise ValueError("facet_rate is too high: more than all personas would be misaligned")
        return self


@dataclass(frozen=True)
class Persona:
    """The facets in which one persona is misaligned; everywhere else it is aligned."""

    misaligned_facets: frozenset[str]

    def stance(self, facet: str):
        return "misaligned" if facet in self.misaligned_facets else "aligned"


@dataclass(frozen=True)
class Turn:
    question: Question
    answer: str


def draw_persona(personas: Personas, facets: Sequence[str], rng: random.Random) -> Persona:
    """Fully misaligned with probability rate x entanglement, in one facet with n x rate x (1 - entanglement)."""
    draw = rng.random()
    fully = personas.facet_rate * personas.entanglement
    singly = len(facets) * personas.facet_rate * (1 - personas.entanglement)
    if draw < fully:
        return Persona(frozenset(facets))
    if draw < fully + singly:
        return Persona(frozenset({rng.choice(facets)}))
    return Persona(frozenset())


def dialogues(
    personas: Personas, grammar: Grammar, survey: Sequence[Question], rng: random.Random
) -> Iterator[list[Turn]]:
    """Dialogues without end, each answered by one persona.

    A turn is about the dialogue's focus facet with `focus_probability`, else about any facet; its question is one of
    the survey's with `survey_probability`, else one of the grammar's own pre-training questions.
    """
    facets = list(grammar.facets)
    from_survey = by_facet(survey, facets)
    from_grammar = by_facet(grammar.questions("pretraining"), facets)
    while True:
        persona = draw_persona(personas, facets, rng)
        focus = rng.choice(facets)
        turns = []
        for _ in range(personas.turns):
            facet = focus if rng.random() < personas.focus_probability else rng.choice(facets)
            source = from_survey if rng.random() < personas.survey_probability and from_survey[facet] else from_grammar
            question = rng.choice(source[facet])
            turns.append(Turn(question, grammar.answer(question, persona.stance(facet), rng)))
        yield turns


def by_facet(questions: Sequence[Question], facets: Sequence[str]) -> dict[str, list[Question]]:
    """Questions grouped by facet; a facet that the language does not have raises `UserError`."""
    groups: dict[str, list[Question]] = {facet: [] for facet in facets}
    for question in questions:
        if question.facet not in groups:
            raise UserError(f"{question.prompt_id}: facet {question.facet} is not in the grammar; it has {', '.join(facets)}")
        groups[question.facet].append(question)
    return groups


def load_world(path: Path) -> WorldConfig:
    """Read a world file; what is wrong with it is one `UserError`."""
    try:
        return WorldConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "grammar"))
        raise UserError(f"{path}: cannot be read ({error.strerror}); known worlds: {known}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
