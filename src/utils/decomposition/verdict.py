"""Separable, entangled or underpowered: one rule from causal evidence to a verdict, written down before it was tried.

Geometry does not decide. Clusters, components and probes find the topic in both kinds of world, so they are reported
beside the verdict and never make it. What decides are lines of causal evidence, each a cross-effect matrix: what was
done in one dimension's name, and what it changed in every dimension.

A line is *informative* if what was done worked where it was meant to: the own effect is clear of `least_own` and of
what the control directions do, the answers stayed coherent, and at least two dimensions were asked about with
`LEAST_QUESTIONS` questions each, below which a bootstrap over them means little. It then says

    stays     its spread is below `boundary` with its whole 95% interval, and the diagonal dominates (p <= `alpha`)
    spreads   its spread is above `boundary` with its whole 95% interval
    open      neither

The verdict is *separable* if some line says stays and none spreads; *entangled* if some line says spreads, none stays,
and a planted separable persona of the same own effect, asked about as many questions, would have been called separable
with power `least_power`; *underpowered* otherwise, with the reason. It holds for the model and the fine-tuning seeds
that it was made from; its error rates are measured on organisms (`benchmarks/verdict.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from src.utils.decomposition.cross_effects import CrossEffects, Outcomes, cross_effects
from src.utils.decomposition.multiplicity import stated_p

Reading = Literal["stays", "spreads", "open", "uninformative"]
LEAST_QUESTIONS = 10
Call = Literal["separable", "entangled", "underpowered"]


@dataclass(frozen=True)
class Rule:
    """The numbers of the rule. `boundary` 0.25: other dimensions get a quarter of what a direction does at home."""

    least_own: float = 0.10
    boundary: float = 0.25
    alpha: float = 0.01
    least_coherence: float = 0.80
    least_power: float = 0.90
    planted_spread: float = 0.05


@dataclass(frozen=True, eq=False)
class Line:
    """One line of evidence and what the rule reads from it; `power` is that of the planted separable persona."""

    name: str
    effects: CrossEffects
    reading: Reading
    reason: str
    power: float


@dataclass(frozen=True, eq=False)
class Verdict:
    call: Call
    reason: str
    rule: Rule
    lines: tuple[Line, ...]


def decide(
    evidence: Mapping[str, Outcomes], rule: Rule, resamples: int = 2000, plantings: int = 200, seed: int = 0
) -> Verdict:
    """The verdict from the outcomes of each line; `plantings` simulated personas a line for its power."""
    lines = tuple(read_line(name, outcomes, rule, resamples, plantings, seed) for name, outcomes in evidence.items())
    stays = [line for line in lines if line.reading == "stays"]
    spreads = [line for line in lines if line.reading == "spreads"]
    names = {
        reading: ", ".join(line.name for line in lines if line.reading == reading)
        for reading in ("open", "uninformative")
    }
    if stays and spreads:
        call, reason = (
            "underpowered",
            f"{stays[0].name} stays in its dimension, {spreads[0].name} spreads: lines disagree",
        )
    elif stays:
        call, reason = (
            "separable",
            f"what is done in one dimension stays there ({'; '.join(line.name for line in stays)})",
        )
    elif spreads and max(line.power for line in spreads) >= rule.least_power:
        call, reason = (
            "entangled",
            f"what is done in one dimension spreads ({'; '.join(line.name for line in spreads)})",
        )
    elif spreads:
        power = max(line.power for line in spreads)
        call, reason = "underpowered", f"it spreads, but a separable persona would be found with power {power:.2f} only"
    elif names["open"]:
        call, reason = "underpowered", f"the interval of the spread contains the boundary ({names['open']})"
    else:
        unread = "; ".join(f"{line.name}: {line.reason}" for line in lines)
        call, reason = "underpowered", f"no line can be read ({unread})" if unread else "no evidence was given"
    return Verdict(call, reason, rule, lines)


def read_line(name: str, outcomes: Outcomes, rule: Rule, resamples: int, plantings: int, seed: int) -> Line:
    """What one line says; its power is simulated only where it says that the persona spreads."""
    effects = cross_effects(outcomes, resamples, seed)
    reading, reason = read(effects, rule)
    power = float("nan")
    if reading == "spreads":
        power = planted_power(outcomes, effects.own.estimate, rule.planted_spread, rule, plantings, seed)
    return Line(name, effects, reading, reason, power)


def read(effects: CrossEffects, rule: Rule) -> tuple[Reading, str]:
    """The reading of a matrix and its reason."""
    own, spread = effects.own, effects.spread
    if len(effects.dimensions) < 2:
        return "uninformative", "one dimension alone has no other to spread to"
    if effects.questions.min() < LEAST_QUESTIONS:
        fewest = effects.questions.min()
        return "uninformative", f"only {fewest} questions in one dimension; {LEAST_QUESTIONS} are needed"
    if effects.coherence < rule.least_coherence:
        return "uninformative", f"only {effects.coherence:.0%} of the answers stayed coherent"
    if not own.low > max(rule.least_own, effects.control):
        return "uninformative", (
            f"own effect {own.estimate:.2f} [{own.low:.2f}, {own.high:.2f}] is not clear of "
            f"{max(rule.least_own, effects.control):.2f} (least own effect, controls)"
        )
    shown = f"spread {spread.estimate:.2f} [{spread.low:.2f}, {spread.high:.2f}]"
    if spread.high < rule.boundary and effects.p_dominance <= rule.alpha:
        dominance = stated_p(effects.p_dominance, effects.permutations)
        return "stays", f"{shown} is below {rule.boundary}, the diagonal dominates with {dominance}"
    if spread.low > rule.boundary:
        return "spreads", f"{shown} is above {rule.boundary}"
    return "open", f"{shown} contains {rule.boundary}" if spread.high >= rule.boundary else f"{shown}, p too large"


def planted_power(
    outcomes: Outcomes, own: float, spread: float, rule: Rule, plantings: int, seed: int, resamples: int = 400
) -> float:
    """How often a planted persona of that own effect and spread would be read as staying, with these questions."""
    return sum(planted_readings(outcomes, own, spread, rule, plantings, seed, resamples)) / plantings


def planted_readings(
    outcomes: Outcomes, own: float, spread: float, rule: Rule, plantings: int, seed: int, resamples: int
) -> Iterator[bool]:
    """One planted persona after another: whether it is read as staying."""
    rng = np.random.default_rng(seed)
    is_home = outcomes.asked[None, :] == outcomes.own[:, None]
    rates = np.where(is_home, own, own * spread).clip(0, 1)
    for number in range(plantings):
        planted = replace(outcomes, effects=(rng.random(rates.shape) < rates).astype(float))
        yield read(cross_effects(planted, resamples, seed + number), rule)[0] == "stays"


def smallest_own_effect(
    outcomes: Outcomes,
    rule: Rule,
    plantings: int,
    seed: int,
    grid: tuple[float, ...] = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    resamples: int = 400,
) -> float | None:
    """The smallest own effect of the grid at which a planted separable persona is found with the rule's power.

    Planted with the spread that `planted_power` plants.
    """
    for own in grid:
        readings = planted_readings(outcomes, own, rule.planted_spread, rule, plantings, seed, resamples)
        if reaches(rule.least_power, readings, plantings):
            return own
    return None


def reaches(share: float, outcomes: Iterable[bool], total: int) -> bool:
    """Whether at least that share of `total` outcomes is true; reads no more of them than decide it."""
    found = missed = 0
    for is_true in outcomes:
        found, missed = found + is_true, missed + (not is_true)
        if (total - missed) / total < share:
            return False
    return found / total >= share


def verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    """Plain data, null for what is no number."""
    return {
        "verdict": verdict.call,
        "reason": verdict.reason,
        "rule": asdict(verdict.rule),
        "lines": {line.name: line_as_json(line) for line in verdict.lines},
    }


def line_as_json(line: Line) -> dict[str, Any]:
    effects = line.effects
    return {
        "reading": line.reading,
        "reason": line.reason,
        "power": or_none(line.power),
        **{
            name: {k: or_none(v) for k, v in asdict(getattr(effects, name)).items()}
            for name in ("own", "cross", "spread")
        },
        "p_dominance": effects.p_dominance,
        "permutations": effects.permutations,
        "control": effects.control,
        "coherence": effects.coherence,
        "questions": dict(zip(effects.dimensions, effects.questions.tolist(), strict=True)),
        "matrix": [
            {
                "direction": direction,
                "dimension": dimension,
                "change": or_none(effects.matrix[v, d]),
                "low": or_none(effects.low[v, d]),
                "high": or_none(effects.high[v, d]),
            }
            for v, direction in enumerate(effects.directions)
            for d, dimension in enumerate(effects.dimensions)
        ],
    }


def or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
