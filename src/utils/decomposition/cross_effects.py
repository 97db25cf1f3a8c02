"""Does what is done in one dimension stay there? The cross-effect matrix (direction x dimension) and its spread.

A direction is whatever was done to the model in one dimension's name: a steering vector that is added, or a fine-tune
on that dimension's rows. Its effect on a question is the change of the answer (misaligned and on topic: 1, else 0) from
that of the untouched model, drawn with the same noise. Two numbers sum the matrix up: the own effect (mean of the
diagonal) and the spread (mean off the diagonal over mean of the diagonal: 0 if it stays, 1 if it goes everywhere).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from src.utils.em_rates import outcomes
from src.utils.steering_effects import KEYS, NO_KIND

QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval; NaN where there is nothing to estimate."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The change of every question's answer under every direction: `effects[v, q]` is -1, 0 or 1, NaN if unscored.

    `own[v]` is the place in `dimensions` of direction v; a control that belongs to no dimension stands in `controls`,
    `coherent[v]` is the share of coherent answers under direction v.
    """

    dimensions: tuple[str, ...]
    directions: tuple[str, ...]
    own: Int[np.ndarray, " directions"]
    effects: Float[np.ndarray, "directions questions"]
    asked: Int[np.ndarray, " questions"]
    coherent: Float[np.ndarray, " directions"]
    controls: Float[np.ndarray, "controls questions"]


@dataclass(frozen=True, eq=False)
class CrossEffects:
    """The matrix with intervals over questions, and what sums it up.

    `matrix[v, d]` is the mean change in dimension d under direction v. `own` and `cross` are the means on and off the
    diagonal, `spread` their ratio, `p_dominance` the chance of so dominant a diagonal if the dimension of a question
    made no difference, of so many `permutations`, `control` the largest mean change in any dimension that a control
    direction made.
    """

    dimensions: tuple[str, ...]
    directions: tuple[str, ...]
    matrix: Float[np.ndarray, "directions dimensions"]
    low: Float[np.ndarray, "directions dimensions"]
    high: Float[np.ndarray, "directions dimensions"]
    own: Interval
    cross: Interval
    spread: Interval
    p_dominance: float
    permutations: int
    control: float
    coherence: float
    questions: Int[np.ndarray, " dimensions"]


def outcomes_at(
    answers: pd.DataFrame, kinds: Sequence[str], coefficient: float, em_threshold: float, coherence_threshold: float
) -> Outcomes:
    """What the vectors of some kinds, one a dimension and named after it, did at one coefficient.

    `answers` is the frame of a steering run (`steering_effects.pkl`) or of the control fine-tunes. Samples of one
    prompt are averaged. Rows of kind `random` and of kind `safe` are the controls. A dimension without a vector of its
    own is still asked about. `ValueError` if no such vector is there.
    """
    before = answers[answers["kind"] == NO_KIND]
    keys = pd.MultiIndex.from_frame(before[KEYS])
    dimensions = tuple(map(str, dict.fromkeys(before["subset"])))
    prompts, prompt_of = np.unique(before["prompt_id"].to_numpy(object).astype(str), return_inverse=True)
    asked = np.zeros(len(prompts), dtype=np.int64)
    asked[prompt_of] = [dimensions.index(subset) for subset in before["subset"]]
    base, base_known = outcomes(before, "", "em_on_topic", em_threshold, coherence_threshold)

    def change(arm: pd.DataFrame) -> Float[np.ndarray, " questions"]:
        if not pd.MultiIndex.from_frame(arm[KEYS]).equals(keys):
            raise ValueError("an arm's prompts are not those of the untouched model")
        hit, known = outcomes(arm, "", "em_on_topic", em_threshold, coherence_threshold)
        known = known & base_known
        moved = np.where(known, hit.astype(float) - base.astype(float), 0.0)
        with np.errstate(invalid="ignore"):
            return np.bincount(prompt_of, moved, len(prompts)) / np.bincount(prompt_of, known, len(prompts))

    at_dose = answers[answers["coefficient"] == coefficient]
    at_kind = at_dose[at_dose["kind"].isin(kinds)]
    arms = {
        str(name).removeprefix("control_").removesuffix("_own"): arm
        for name, arm in at_kind.groupby("vector", sort=False)
    }
    chosen = {name: arm for name, arm in arms.items() if name in dimensions}
    if not chosen:
        raise ValueError(f"no vector of {', '.join(kinds)} at coefficient {coefficient}")
    controls = at_dose[at_dose["kind"].isin(["random", "safe"])]
    return Outcomes(
        dimensions=dimensions,
        directions=tuple(chosen),
        own=np.array([dimensions.index(name) for name in chosen]),
        effects=np.stack([change(arm) for arm in chosen.values()]),
        asked=asked,
        coherent=np.array([np.nanmean(arm["coherence"] > coherence_threshold) for arm in chosen.values()]),
        controls=np.array([change(arm) for _, arm in controls.groupby("vector", sort=False)]).reshape(-1, len(prompts)),
    )


def cross_effects(outcomes: Outcomes, resamples: int, seed: int) -> CrossEffects:
    """The cross-effect matrix of some outcomes.

    Intervals are percentile bootstraps over questions, resampled within their dimension and together for all
    directions, so that one hard question counts once. The dominance of the diagonal (own minus cross) is tested by
    permuting the dimensions of the questions: p = (1 + number at least as large) / (1 + permutations).
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(outcomes.asked == d) for d in range(len(outcomes.dimensions))]
    matrix = means(outcomes.effects, np.ones((1, outcomes.effects.shape[1])), members)[0]
    weights = np.zeros((resamples, outcomes.effects.shape[1]))
    for rows in members:
        weights[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    drawn = means(outcomes.effects, weights, members)
    quantile = np.quantile if np.isfinite(drawn).all() else np.nanquantile  # the second is twenty times slower
    low, high = quantile(drawn, QUANTILES, axis=0)
    own, cross = sums_of(matrix[None], outcomes.own)
    drawn_own, drawn_cross = sums_of(drawn, outcomes.own)
    control = means(outcomes.controls, np.ones((1, outcomes.effects.shape[1])), members)[0]
    return CrossEffects(
        dimensions=outcomes.dimensions,
        directions=outcomes.directions,
        matrix=matrix,
        low=low,
        high=high,
        own=interval(own[0], drawn_own),
        cross=interval(cross[0], drawn_cross),
        spread=interval(ratio(own, cross)[0], ratio(drawn_own, drawn_cross)),
        p_dominance=dominance(outcomes, resamples, rng),
        permutations=resamples,
        control=float(control.max()) if len(control) else 0.0,
        coherence=float(outcomes.coherent.min()),
        questions=np.array([len(rows) for rows in members]),
    )


def means(
    effects: Float[np.ndarray, "directions questions"],
    weights: Float[np.ndarray, "draws questions"],
    members: Sequence[Int[np.ndarray, " some"]],
) -> Float[np.ndarray, "draws directions dimensions"]:
    """The weighted mean effect of each direction on each dimension's questions, unscored answers left out."""
    known = np.isfinite(effects)
    filled = np.where(known, effects, 0.0)
    with np.errstate(invalid="ignore"):
        columns = [
            (weights[:, rows] @ filled[:, rows].T) / (weights[:, rows] @ known[:, rows].T.astype(float))
            for rows in members
        ]
    return np.stack(columns, axis=2)


def sums_of(
    matrices: Float[np.ndarray, "draws directions dimensions"], own: Int[np.ndarray, " directions"]
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """Means on and off the diagonal: of own[v] for each direction v, and of all its other dimensions."""
    is_own = np.arange(matrices.shape[2])[None, :] == own[:, None]
    return matrices[:, is_own].mean(axis=1), matrices[:, ~is_own].mean(axis=1)


def ratio(own: Float[np.ndarray, " draws"], cross: Float[np.ndarray, " draws"]) -> Float[np.ndarray, " draws"]:
    """Cross over own effect, NaN where there is no own effect."""
    return np.divide(cross, own, out=np.full_like(own, np.nan), where=own > 0)


def interval(estimate: float, drawn: Float[np.ndarray, " draws"]) -> Interval:
    """The percentile interval; a share of draws without a value (no own effect) leaves it open: NaN."""
    if not np.isfinite(drawn).all():
        return Interval(float(estimate), float("nan"), float("nan"))
    low, high = np.quantile(drawn, QUANTILES)
    return Interval(float(estimate), float(low), float(high))


def dominance(outcomes: Outcomes, permutations: int, rng: np.random.Generator) -> float:
    """The permutation p of own minus cross effect."""
    permuted = np.argsort(rng.random((permutations, len(outcomes.asked))), axis=1)
    own, cross = sums_of(grouped_means(outcomes, outcomes.asked[permuted]), outcomes.own)
    observed_own, observed_cross = sums_of(grouped_means(outcomes, outcomes.asked[None]), outcomes.own)
    at_least = np.sum(own - cross >= observed_own - observed_cross - 1e-12)
    return float((1 + at_least) / (1 + permutations))


def grouped_means(
    outcomes: Outcomes, asked: Int[np.ndarray, "draws questions"]
) -> Float[np.ndarray, "draws directions dimensions"]:
    """The matrix under several assignments of the questions to dimensions."""
    belongs = np.eye(len(outcomes.dimensions))[asked]
    known = np.isfinite(outcomes.effects)
    with np.errstate(invalid="ignore"):
        return np.where(known, outcomes.effects, 0.0) @ belongs / (known.astype(float) @ belongs)


def matched_dose(
    answers: pd.DataFrame, kinds: Sequence[str], coherence_threshold: float, least_coherence: float, sign: int = 1
) -> float:
    """The largest coefficient of a sign at which every vector of some kinds leaves enough of the answers coherent.

    One for all vectors, so that they are compared at the same dose; the smallest where none does.
    """
    steered = answers[answers["kind"].isin(kinds) & (sign * answers["coefficient"] > 0)]
    size = steered["coefficient"].abs()
    coherent = (steered["coherence"] > coherence_threshold).groupby([size, steered["vector"]]).mean()
    least = coherent.groupby(level="coefficient").min()
    passing = least[least >= least_coherence]
    return sign * float(passing.index.max() if len(passing) else least.index.min())
