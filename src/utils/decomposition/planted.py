"""Sub-personas planted in the data at hand, and a test of whether dimensions vary in subspaces of their own.

How often a test finds what was planted is left to `power_curve`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from src.utils.decomposition.prompt_resampling import exchange_prompts
from src.utils.decomposition.rank import check_numbers, rotate_losslessly
from src.utils.errors import UserError

Null = Literal["exchanged", "gaussian"]


@dataclass(frozen=True, eq=False)
class Planted:
    """Data with one direction a dimension: unit rows of `directions`, in the order of `names`, `length` added.

    `expressed` marks the rows that it was added to.
    """

    matrix: Float[np.ndarray, "rows features"]
    names: list[str]
    directions: Float[np.ndarray, "dimensions features"]
    length: float
    expressed: Bool[np.ndarray, " rows"]


def plant(
    matrix: Float[np.ndarray, "rows features"],
    dimensions: np.ndarray,
    angle: float,
    snr: float,
    seed: int,
    groups: np.ndarray | None = None,
    null: Null = "exchanged",
) -> Planted:
    """Destroy what tells the dimensions' residuals apart, then add a direction to a random half of each one's prompts.

    `angle`: between any two of the directions, degrees from 0 (one direction shared by all) to 90. `snr`: length of
    what is added, in standard deviations of the residuals along a random direction (square root of their mean variance
    over features). Dimension means stay. Their residuals are `exchanged` between all prompts, or drawn anew from a
    Gaussian of the same pooled covariance: the former keeps clusters that all dimensions share, the latter none. Half
    of the prompts express the direction, so that removing dimension means does not remove it. `groups` holds the rows'
    prompts; without it each row is one. With snr 0 no dimension differs from another but in its mean.
    """
    if not 0 <= angle <= 90:
        raise UserError(f"angle {angle}: not between 0 and 90 degrees; planted directions go from shared to orthogonal")
    rng = np.random.default_rng(seed)
    groups = np.arange(len(matrix)) if groups is None else groups
    residuals = without_means(matrix, dimensions)
    means = matrix - residuals
    length = snr * float(np.sqrt((residuals**2).sum() / (len(matrix) - len(np.unique(dimensions))) / matrix.shape[1]))
    if null == "gaussian":
        root = np.linalg.qr(residuals).R if matrix.shape[1] < len(matrix) else residuals
        draws = rng.standard_normal((len(matrix), len(root)), dtype=np.float32)
        residuals = draws @ root.astype(np.float32) / np.sqrt(len(matrix))
    else:
        residuals = residuals[exchange_prompts(groups, rng)]
    names = np.unique(dimensions)
    directions = directions_at(angle, len(names), matrix.shape[1], rng)
    expressed = np.zeros(len(matrix), dtype=bool)
    planted = means + residuals
    for name, direction in zip(names, directions, strict=True):
        prompts = np.unique(groups[dimensions == name])
        half = rng.permutation(prompts)[: len(prompts) // 2]
        rows = (dimensions == name) & np.isin(groups, half)
        expressed |= rows
        planted[rows] += length * direction
    return Planted(planted, names.tolist(), directions, length, expressed)


def directions_at(
    angle: float, count: int, features: int, rng: np.random.Generator
) -> Float[np.ndarray, "count features"]:
    """Unit vectors with one angle, in degrees, between any two, and no other preference."""
    if features <= count:
        raise UserError(f"activations: {features} features hold no {count} planted directions; use more")
    shared, *own = np.linalg.qr(rng.standard_normal((features, count + 1)))[0].T
    cosine = np.cos(np.radians(angle))
    return np.sqrt(cosine) * shared + np.sqrt(1 - cosine) * np.array(own)


def subspace_p_value(
    matrix: Float[np.ndarray, "rows features"],
    dimensions: np.ndarray,
    groups: np.ndarray,
    seed: int,
    permutations: int = 199,
) -> float:
    """Do the dimensions' residuals vary in different subspaces? Permutation p, prompts exchanged between dimensions.

    The statistic is `covariance_distances` between the means over each prompt's rows. Each principal component is first
    divided by the root of its variance plus the mean variance over features, so that the few that carry most of it do
    not decide alone. One direction that all dimensions share is no difference. p = (1 + permutations at least as large)
    / (1 + permutations). Raises `UserError` for a single dimension and for one with fewer than four prompts.
    """
    check_numbers(matrix)
    prompts, first, of_prompt, rows_of = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    names, index = np.unique(dimensions[first], return_inverse=True)
    sizes = dict(zip(names.tolist(), np.bincount(index).tolist(), strict=True))
    if len(sizes) < 2 or min(sizes.values()) < 4:
        raise UserError(f"dimensions {sizes} (prompts): a comparison needs two of them with four prompts each")
    residuals = without_means(matrix, dimensions)
    means = np.zeros((len(prompts), matrix.shape[1]))
    np.add.at(means, of_prompt, residuals)
    scores = rotate_losslessly(means / rows_of[:, None])
    variances = scores.var(axis=0)
    scores = scores / np.sqrt(variances + variances.sum() / matrix.shape[1])
    rng = np.random.default_rng(seed)
    alike = rows_of[:, None] == np.unique(rows_of)[None, :]  # a mean over more rows is less noisy: no exchange with it
    orders = np.tile(np.arange(len(prompts)), (1 + permutations, 1))
    for order in orders[1:]:
        for places in map(np.flatnonzero, alike.T):
            order[places] = rng.permutation(places)
    distances = covariance_distances(scores @ scores.T, index[orders])
    # Equal partitions give equal distances but for rounding.
    return float((1 + (distances[1:] >= distances[0] - 1e-9 * abs(distances[0])).sum()) / (1 + permutations))


def covariance_distances(
    gram: Float[np.ndarray, "rows rows"], labels: Int[np.ndarray, "partitions rows"]
) -> Float[np.ndarray, " partitions"]:
    """Unbiased sum over pairs of groups of ||C_1 - C_2||^2, a partition of the rows each [Li & Chen 2012, section 2].

    The terms of three and four different rows make it free of the groups' means. Without them, rows whose group means
    were removed are correlated by -1/n within a group, which looks like structure: with 50 rows a group and 400
    features a permutation test rejected 96% of data sets in which nothing differed.
    """
    groups = int(labels.max()) + 1
    member = np.eye(groups)[labels]  # partitions rows groups
    size = np.bincount(labels[0]).astype(float)
    others = gram - np.diag(gram.diagonal())
    flat = member.transpose(1, 0, 2).reshape(len(gram), -1)
    to_group, square_to_group = ((each @ flat).reshape(len(gram), -1, groups) for each in (others, others**2))

    def by_pair(values: np.ndarray) -> Float[np.ndarray, "partitions groups groups"]:
        return np.einsum("prd,rpe->pde", member, values, optimize=True)

    squares, chains, sums = by_pair(square_to_group), by_pair(to_group**2), by_pair(to_group)
    one, other = size[:, None], size[None, :]
    swapped = chains.transpose(0, 2, 1)
    between = squares / (one * other)
    between -= (chains - squares) / (one * other * (other - 1)) + (swapped - squares) / (other * one * (one - 1))
    between += (sums**2 - chains - swapped + squares) / (one * (one - 1) * other * (other - 1))
    square, chain, total = (np.diagonal(each, axis1=1, axis2=2) for each in (squares, chains, sums))
    pairs = size * (size - 1)
    within = square / pairs - 2 * (chain - square) / (pairs * (size - 2))
    within += (total**2 - 4 * chain + 2 * square) / (pairs * (size - 2) * (size - 3))
    apart = between.sum(axis=(1, 2)) - np.diagonal(between, axis1=1, axis2=2).sum(axis=1)
    return (groups - 1) * within.sum(axis=1) - apart


def without_means(matrix: Float[np.ndarray, "rows features"], dimensions: np.ndarray) -> np.ndarray:
    """Rows minus the mean of their dimension, double precision."""
    residuals = matrix.astype(np.float64)
    for name in np.unique(dimensions):
        rows = dimensions == name
        residuals[rows] -= residuals[rows].mean(axis=0)
    return residuals
