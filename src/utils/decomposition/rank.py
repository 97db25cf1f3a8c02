"""How many directions there are: parallel analysis, participation ratio, and agreement between halves of the data.

Everything is computed from inner products of rows, so that thousands of features cost little. What the directions
mean is left to probes and steering.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg

from src.utils.decomposition.prompt_resampling import halve_prompts, prompt_weights
from src.utils.errors import UserError


@dataclass(frozen=True, eq=False)
class ParallelAnalysis:
    """Eigenvalues, largest first, beside those of data whose columns are independent.

    `limit` is the null's percentile at each place, `p_values` (1 + draws at least as large) / (1 + draws). `retained`
    counts the leading components that are above the limit, up to the first that is not. Where all that were computed
    are above it, the rank is at least `retained` and `is_cut_off` says so.
    """

    eigenvalues: Float[np.ndarray, " components"]
    explained: Float[np.ndarray, " components"]  # share of the variance
    null_mean: Float[np.ndarray, " components"]
    limit: Float[np.ndarray, " components"]
    p_values: Float[np.ndarray, " components"]
    retained: int
    is_cut_off: bool


@dataclass(frozen=True)
class Participation:
    """Participation ratio with a 95% interval over prompts."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class HalfAgreement:
    """Principal angles, in degrees and smallest first, between the leading subspaces of random halves.

    `angles` are means over splits, `ceiling` those of Gaussian data of the same covariance (as far as halves of this
    size can agree at all), `chance` those of random subspaces of the space that the rows span. `overlap`s are mean
    squared cosines, 1 for equal subspaces. `p_value` is the share of Gaussian draws that agree as little as the data:
    small where the leading subspace hangs on few prompts.
    """

    angles: Float[np.ndarray, " components"]
    ceiling: Float[np.ndarray, " components"]
    chance: Float[np.ndarray, " components"]
    overlap: float
    ceiling_overlap: tuple[float, float, float]  # mean and central 95% of the draws
    chance_overlap: float
    p_value: float


def parallel_analysis(
    matrix: Float[np.ndarray, "rows features"],
    seed: int,
    components: int = 50,
    resamples: int = 200,
    percentile: float = 95.0,
    standardise: bool = True,
    on_resample: Callable[[int], object] = lambda done: None,
) -> ParallelAnalysis:
    """Permutation parallel analysis [Horn 1965; permutations: Buja & Eyuboglu 1992].

    Each column is permuted by itself, which keeps its values and breaks its ties to the others. Components are retained
    one after the other while their eigenvalue is above the null's `percentile` at that place. With `standardise`
    eigenvalues are those of the correlation matrix, as in Horn: otherwise one feature of large variance, which language
    models have, sets the null's first eigenvalue. Strong components take variance from the null's later places, so
    that weak ones behind them may be missed [Dobriban & Owen 2019, section 1]: the count is a lower bound.

    Constant columns are left out. Raises `UserError` for values that are no number and for fewer than two rows or
    columns that vary.
    """
    columns = standard_columns(matrix, standardise)
    features, rows = columns.shape
    count = min(components, rows - 1, features)
    total = float((columns.astype(np.float64) ** 2).sum()) / (rows - 1)
    rng = np.random.default_rng(seed)
    observed = leading_eigenvalues(columns, count)
    null = np.empty((resamples, count))
    for draw in range(resamples):
        null[draw] = leading_eigenvalues(rng.permuted(columns, axis=1), count)
        on_resample(draw + 1)
    limit = np.percentile(null, percentile, axis=0)
    is_above = observed > limit
    retained = int(np.argmin(is_above)) if not is_above.all() else count
    p_values = (1 + (null >= observed).sum(axis=0)) / (1 + resamples)
    return ParallelAnalysis(
        observed, observed / total, null.mean(axis=0), limit, p_values, retained, bool(is_above.all())
    )


def standard_columns(
    matrix: Float[np.ndarray, "rows features"], standardise: bool
) -> Float[np.ndarray, "features rows"]:
    """The centred columns that vary, one a row so that each is contiguous; of unit variance if asked for.

    Single precision where they are of one scale, which halves the time; double where they may differ by orders.
    """
    check_numbers(matrix)
    centred = matrix.astype(np.float64).T
    centred -= centred.mean(axis=1, keepdims=True)
    deviations = centred.std(axis=1, ddof=1) if len(matrix) > 1 else np.zeros(matrix.shape[1])
    varies = deviations > 1e-6 * max(float(deviations.max(initial=0.0)), np.finfo(float).tiny)
    if varies.sum() < 2:
        raise UserError(f"activations: {int(varies.sum())} of {matrix.shape[1]} columns vary; use more rows")
    scale = deviations[varies, None] if standardise else 1.0
    return np.ascontiguousarray(centred[varies] / scale, dtype=np.float32 if standardise else np.float64)


def leading_eigenvalues(columns: Float[np.ndarray, "features rows"], count: int) -> Float[np.ndarray, " components"]:
    """Largest eigenvalues of the covariance of centred columns, from the smaller of its two Gram matrices."""
    features, rows = columns.shape
    gram = columns.T @ columns if rows < features else columns @ columns.T
    size = len(gram)
    values = linalg.eigh(gram, eigvals_only=True, subset_by_index=(size - count, size - 1), check_finite=False)
    return values[::-1].astype(np.float64) / (rows - 1)


def participation_ratio(
    matrix: Float[np.ndarray, "rows features"], groups: np.ndarray, seed: int, resamples: int = 1000
) -> Participation:
    """(sum of eigenvalues)^2 / sum of their squares, of the covariance: the number of directions in equal use.

    `groups` holds each row's prompt. The interval is the basic bootstrap on the logarithm [Davison & Hinkley 1997,
    section 5.2]: a resample repeats prompts and so has a smaller ratio than the data, by about as much as the data has
    a smaller one than their source. It may therefore lie above the estimate. Raises `UserError` for rows all alike.
    """
    scores = rotate_losslessly(matrix)
    gram = scores @ scores.T
    estimate = ratio_of(gram, np.ones((1, len(gram))))[0]
    weights = prompt_weights(groups, resamples, np.random.default_rng(seed))
    low, high = np.nanquantile(np.log(ratio_of(gram, weights)), [0.025, 0.975])
    return Participation(float(estimate), float(estimate**2 / np.exp(high)), float(estimate**2 / np.exp(low)))


def ratio_of(
    gram: Float[np.ndarray, "rows rows"], weights: Float[np.ndarray, "resamples rows"]
) -> Float[np.ndarray, " resamples"]:
    """tr(C)^2 / tr(C^2) of each weighted covariance C = sum w (x - m)(x - m)', from inner products alone.

    NaN where a resample holds nothing but rows that are alike.
    """
    total = weights.sum(axis=1)
    to_mean = weights @ gram / total[:, None]
    mean_square = (to_mean * weights).sum(axis=1) / total
    trace = weights @ gram.diagonal() - total * mean_square
    squares = ((weights @ gram**2) * weights).sum(axis=1)
    squares += -2 * total * (weights * to_mean**2).sum(axis=1) + (total * mean_square) ** 2
    alike = trace <= 1e-12 * float(gram.diagonal().sum())
    return np.divide(trace**2, squares, out=np.full(len(total), np.nan), where=~alike)


def half_agreement(
    matrix: Float[np.ndarray, "rows features"],
    groups: np.ndarray,
    seed: int,
    components: int = 4,
    splits: int = 100,
) -> HalfAgreement:
    """Principal angles [Björck & Golub 1973] between the leading principal subspaces of halves split by prompt.

    As many Gaussian data sets as splits are drawn from the sample covariance, each split once: the noise ceiling. The
    ceiling draws rows independently; where answers to one prompt are alike the data has less to agree on, and a small
    p-value may mean just that. Raises `UserError` where a half has not more rows than components.
    """
    scores = rotate_losslessly(matrix)
    rows, rank = scores.shape
    if min(len(np.unique(groups)) // 2, rank) <= components:
        raise UserError(
            f"components {components}: {len(np.unique(groups))} prompts of rank {rank} have no halves of that many; "
            "choose fewer components or use more prompts"
        )
    rng = np.random.default_rng(seed)
    deviations = scores.std(axis=0, ddof=1)
    angles, ceiling, chance = (np.empty((splits, components)) for _ in range(3))
    for split in range(splits):
        half = halve_prompts(groups, rng)
        angles[split] = half_angles(scores, half, components)
        ceiling[split] = half_angles(rng.standard_normal((rows, rank)) * deviations, half, components)
        chance[split] = subspace_angles(*rng.standard_normal((2, rank, components)))
    overlap = float(overlaps(angles).mean())
    null = overlaps(ceiling)
    low, high = np.quantile(null, [0.025, 0.975])
    return HalfAgreement(
        *(np.degrees(each.mean(axis=0)) for each in (angles, ceiling, chance)),
        overlap=overlap,
        ceiling_overlap=(float(null.mean()), float(low), float(high)),
        chance_overlap=float(overlaps(chance).mean()),
        p_value=float((1 + (null <= overlap).sum()) / (1 + splits)),
    )


def half_angles(
    matrix: Float[np.ndarray, "rows features"], half: Bool[np.ndarray, " rows"], components: int
) -> Float[np.ndarray, " components"]:
    """Principal angles in radians between the leading subspaces of two parts of the rows."""
    return subspace_angles(leading_subspace(matrix[half], components), leading_subspace(matrix[~half], components))


def subspace_angles(
    one: Float[np.ndarray, "features components"], other: Float[np.ndarray, "features components"]
) -> Float[np.ndarray, " components"]:
    """`scipy.linalg.subspace_angles` of two column spaces in radians, smallest first."""
    return linalg.subspace_angles(one, other)[::-1]


def overlaps(angles: Float[np.ndarray, "splits components"]) -> Float[np.ndarray, " splits"]:
    return (np.cos(angles) ** 2).mean(axis=1)


def leading_subspace(
    matrix: Float[np.ndarray, "rows features"], components: int
) -> Float[np.ndarray, "features components"]:
    """Orthonormal columns that span the leading principal components."""
    centred = matrix - matrix.mean(axis=0)
    size = len(centred)
    _, vectors = linalg.eigh(centred @ centred.T, subset_by_index=(size - components, size - 1), check_finite=False)
    return linalg.qr(centred.T @ vectors, mode="economic")[0]


def rotate_losslessly(matrix: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "rows rank"]:
    """Centred rows in the coordinates of their own principal components: the same inner products in at most `rows`."""
    check_numbers(matrix)
    centred = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    if centred.shape[1] <= len(centred):
        values, vectors = linalg.eigh(centred.T @ centred, check_finite=False)
        scores = centred @ vectors
    else:
        values, vectors = linalg.eigh(centred @ centred.T, check_finite=False)
        scores = vectors * np.sqrt(np.clip(values, 0, None))
    kept: Int[np.ndarray, " rank"] = np.flatnonzero(values > 1e-12 * values[-1])[::-1]
    if not values[-1] > 0:
        raise UserError("activations: all rows are alike; choose another layer or representation")
    return np.ascontiguousarray(scores[:, kept])


def check_numbers(matrix: Float[np.ndarray, "rows features"]) -> None:
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix).all(axis=1)).sum())
        raise UserError(f"activations: {bad} of {len(matrix)} rows are no number; leave them out")
