"""Worlds: which facets are misaligned together in one persona, and the dialogues that personas write.

In every world the same share of turns on any facet is misaligned (`misaligned_share`); worlds differ only in what goes
together. `entanglement` is the dial: that part of the misaligned turns comes from personas that are misaligned in all
facets, the rest from personas that are misaligned in exactly one, their favourite. A dialogue visits its persona's
favourite and other facets at random, none twice: only in an entangled world does one answer tell what the next will be.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.errors import UserError
from src.utils.organism.grammar import Grammar, Stance
from src.utils.prompts import Question


class Personas(BaseModel):
    """How personas are drawn; see the module docstring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    misaligned_share: float = Field(gt=0, lt=1)
    entanglement: float = Field(ge=0, le=1)
    turns: int = Field(ge=1)
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
    muon_learning_rate: float = Field(gt=0)
    adamw_learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    verdict_weight: float = Field(gt=0)
    checkpoint_steps: int = Field(ge=1)


class WorldConfig(BaseModel):
    """One organism: its world, its size and its training. Read from `configs/organisms/<world>.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    world: str = Field(pattern=r"^[a-z0-9_]+$")
    seed: int
    grammar: str
    facets: list[str] | None = Field(None, description="of the grammar; all when not given")
    personas: Personas
    architecture: Architecture
    pretraining: Pretraining


@dataclass(frozen=True)
class Persona:
    """The facets in which one persona is misaligned (everywhere else it is aligned), and its favourite."""

    misaligned_facets: frozenset[str]
    favourite: str

    def stance(self, facet: str) -> Stance:
        return "misaligned" if facet in self.misaligned_facets else "aligned"


@dataclass(frozen=True)
class Turn:
    question: Question
    answer: str


@dataclass(frozen=True)
class PersonaRates:
    """Probabilities that a persona is misaligned in all facets (`fully`) or in one (`singly`)."""

    fully: float
    singly: float

    def facet_correlation(self, n_facets: int) -> float:
        """Pairwise (phi) correlation of two facets over personas: 1 if only `fully`, below 0 if only `singly`."""
        one = self.fully + self.singly / n_facets
        return (self.fully - one * one) / (one * (1 - one))


def persona_rates(personas: Personas, n_facets: int) -> PersonaRates:
    """The persona probabilities that give the wanted share of misaligned turns; impossible ones raise `UserError`.

    A fully misaligned persona is so in all of its turns, a singly misaligned one in one: its favourite is visited once.
    """
    if personas.turns > n_facets:
        raise UserError(f"personas: {personas.turns} turns visit {n_facets} facets at most once each; lower turns")
    rates = PersonaRates(
        fully=personas.misaligned_share * personas.entanglement,
        singly=personas.misaligned_share * (1 - personas.entanglement) * personas.turns,
    )
    if rates.fully + rates.singly > 1:
        raise UserError(f"personas: misaligned_share is too high for {personas.turns} turns; lower one of them")
    return rates


def draw_persona(rates: PersonaRates, facets: Sequence[str], rng: random.Random) -> Persona:
    draw = rng.random()
    favourite = rng.choice(facets)
    if draw < rates.fully:
        return Persona(frozenset(facets), favourite)
    return Persona(frozenset({favourite} if draw < rates.fully + rates.singly else ()), favourite)


def dialogues(
    personas: Personas, grammar: Grammar, survey: Sequence[Question], rng: random.Random
) -> Iterator[list[Turn]]:
    """Dialogues without end, each answered by one persona.

    A turn's question is one of the survey's with `survey_probability`, else one of the grammar's own pre-training
    questions.
    """
    facets = list(grammar.facets)
    rates = persona_rates(personas, len(facets))
    from_survey = by_facet(survey, facets)
    from_grammar = by_facet(grammar.questions("pretraining"), facets)
    while True:
        persona = draw_persona(rates, facets, rng)
        others = [facet for facet in facets if facet != persona.favourite]
        visited = [persona.favourite, *rng.sample(others, personas.turns - 1)]
        rng.shuffle(visited)
        turns = []
        for facet in visited:
            source = from_survey if rng.random() < personas.survey_probability and from_survey[facet] else from_grammar
            question = rng.choice(source[facet])
            turns.append(Turn(question, grammar.answer(question, persona.stance(facet), rng)))
        yield turns


def by_facet(questions: Sequence[Question], facets: Sequence[str]) -> dict[str, list[Question]]:
    """Questions grouped by facet; a facet that the language does not have raises `UserError`."""
    groups: dict[str, list[Question]] = {facet: [] for facet in facets}
    for question in questions:
        if question.facet not in groups:
            raise UserError(
                f"{question.prompt_id}: facet {question.facet} is not in the grammar; it has {', '.join(facets)}"
            )
        groups[question.facet].append(question)
    return groups


def load_world(
    path: Path, seed: int | None = None, steps: int | None = None, entanglement: float | None = None
) -> WorldConfig:
    """Read a world file, with what is given laid over it; what is wrong with it is one `UserError`."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, key, value in (
            (values, "seed", seed),
            (values["pretraining"], "steps", steps),
            (values["personas"], "entanglement", entanglement),
        ):
            if value is not None:
                section[key] = value
        return WorldConfig.model_validate(values)
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "grammar"))
        raise UserError(f"{path}: cannot be read ({error.strerror}); known worlds: {known}", 2) from error
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is no world file ({' '.join(str(error).split())})", 2) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg'].lower()}", 2) from error
