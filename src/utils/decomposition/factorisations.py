"""PCA, ICA, NMF and a sparse dictionary on the same rows: what each rebuilds of rows it has not seen, and what returns.

A factorisation that rebuilds well may still name its components at random: stability between halves of the prompts
stands beside reconstruction, and beside the same for Gaussian data of the same covariance, which has no components but
the axes of its covariance. What components mean is left to others.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF, PCA, DictionaryLearning, FastICA
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GroupKFold, GroupShuffleSplit
from threadpoolctl import threadpool_limits

from src.utils.errors import UserError

SPARSITY = 0.2  # weight of the dictionary's l1 penalty, for rows of unit root mean square norm
DICTIONARY_ITERATIONS = 8  # from independent components: as low a loss as 30 from scikit-learn's own start
NMF_ITERATIONS = 50  # within 0.001 of those after 200
ICA_ITERATIONS = 500

Rows = Float[np.ndarray, "rows features"]
Codes = Float[np.ndarray, "rows components"]


@dataclass(frozen=True, eq=False)
class Factorisation:
    """A fit: one direction a component (any length), codes for any rows, and rows rebuilt from codes."""

    directions: Float[np.ndarray, "components features"]
    encode: Callable[[Rows], Codes]
    decode: Callable[[Codes], Rows]


@dataclass(frozen=True)
class Method:
    """How to fit; `is_rotation_invariant` says that turning the features turns the components and nothing else."""

    fit: Callable[[Rows, int, int], Factorisation]
    is_rotation_invariant: bool


def fit_pca(rows: Rows, components: int, seed: int) -> Factorisation:
    """Principal components (ARPACK, to machine precision)."""
    pca = PCA(components, svd_solver="arpack", random_state=seed).fit(rows)
    return Factorisation(pca.components_, pca.transform, pca.inverse_transform)


def fit_ica(rows: Rows, components: int, seed: int) -> Factorisation:
    """FastICA (Hyvarinen 1999) of the leading principal components: another basis of the same subspace.

    It rebuilds therefore exactly what PCA does; a direction is its column of the mixing matrix, which is what one unit
    of the source adds to a row.
    """
    pca = PCA(components, svd_solver="arpack", random_state=seed).fit(rows)
    ica = FastICA(whiten="unit-variance", max_iter=ICA_ITERATIONS, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a Gaussian has no independent directions to converge to
        ica.fit(pca.transform(rows))
    return Factorisation(
        ica.mixing_.T @ pca.components_,
        lambda given: ica.transform(pca.transform(given)),
        lambda codes: pca.inverse_transform(ica.inverse_transform(codes)),
    )


def fit_nmf(rows: Rows, components: int, seed: int) -> Factorisation:
    """Non-negative factors of the centred rows' positive and negative parts, side by side: 2 x features columns.

    A direction, and a rebuilt row, is the positive half less the negative one. NMF knows axes: it is fitted in the
    features as they are, not in a rotation of them.
    """
    mean, features = rows.mean(axis=0), rows.shape[1]
    nmf = NMF(components, init="nndsvd", tol=1e-3, max_iter=NMF_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # held-out reconstruction says what the fit is worth
        nmf.fit(signed_parts(rows - mean))
    directions = nmf.components_[:, :features] - nmf.components_[:, features:]
    return Factorisation(
        directions, lambda given: nmf.transform(signed_parts(given - mean)), lambda codes: mean + codes @ directions
    )


def fit_dictionary(rows: Rows, components: int, seed: int, sparsity: float = SPARSITY) -> Factorisation:
    """A dictionary under an l1 penalty on the codes (Mairal et al. 2009), codes of new rows by the same lasso.

    It starts from independent components. The mini-batch variant does not get to sparse sources that were planted
    (matched cosine 0.7 after 30 passes over 440 rows, against 0.998).
    """
    rows = rows.astype(np.float64)  # the lasso does not get to its tolerance in float32
    mean = rows.mean(axis=0)
    start = fit_ica(rows, components, seed)
    lengths = np.linalg.norm(start.directions, axis=1)
    learner = DictionaryLearning(
        components, alpha=sparsity, fit_algorithm="cd", transform_algorithm="lasso_cd", max_iter=DICTIONARY_ITERATIONS,
        tol=1e-4, dict_init=unit(start.directions), code_init=start.encode(rows) * lengths, random_state=seed,
    ).fit(rows - mean)  # fmt: skip
    return Factorisation(
        learner.components_,
        lambda given: learner.transform(given.astype(np.float64) - mean),
        lambda codes: mean + codes @ learner.components_,
    )


METHODS: Mapping[str, Method] = {
    "pca": Method(fit_pca, is_rotation_invariant=True),
    "ica": Method(fit_ica, is_rotation_invariant=True),
    "nmf": Method(fit_nmf, is_rotation_invariant=False),
    "dictionary": Method(fit_dictionary, is_rotation_invariant=True),
}


def compare_factorisations(
    matrix: Rows,
    groups: Sequence[object] | np.ndarray,
    components: int,
    seed: int,
    methods: Sequence[str] = tuple(METHODS),
    folds: int = 5,
    repeats: int = 5,
    on_fit: Callable[[str], object] = lambda method: None,
) -> pd.DataFrame:
    """Tidy table `method, components, measure, repeat, value`; rows of one group (a prompt) are never parted.

    `held_out`: share of the variance about the training mean that is rebuilt, a repeat a fold. `active`: share of the
    codes of held-out rows that are not zero. `stability`: mean absolute cosine between components of two random halves,
    matched one to one (Hungarian), a repeat a split. `stability_null`: the same for Gaussian data of the same
    covariance, a new one a split; its rows are independent, so that where a prompt has several samples it is, if
    anything, too stable.

    Rows are centred and scaled to unit root mean square norm. With more features than rows all but NMF work in the
    coordinates of the rows' span (a rotation that loses nothing). `on_fit` is told the method after each fit.
    Raises `UserError` for unknown methods and for more components, folds or features than the data allow.
    """
    labels = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    check(matrix, labels, components, methods, folds)
    centred = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    scale = np.sqrt((centred**2).sum(axis=1).mean())
    if not scale > 0:
        raise UserError("factorisation: all rows are the same; choose a layer behind those that the fine-tune changed")
    left, singular, axes = np.linalg.svd(centred / scale, full_matrices=False)
    data = Data(left * singular, axes, is_wide=matrix.shape[1] > len(matrix))
    rng = np.random.default_rng(seed)
    nulls = [rng.standard_normal(left.shape) * (singular / np.sqrt(len(matrix))) for _ in range(repeats)]

    found: list[tuple[str, int, str, int, float]] = []
    with threadpool_limits(1):  # sums in one order, so that one seed gives one table
        for name in methods:
            method = METHODS[name]
            rows = data.view(method)
            for fold, (train, test) in enumerate(
                GroupKFold(folds, shuffle=True, random_state=seed).split(rows, groups=labels)
            ):
                fitted = method.fit(rows[train], components, seed)
                share, active = held_out(fitted, rows[train], rows[test])
                found += [(name, components, "held_out", fold, share), (name, components, "active", fold, active)]
                on_fit(name)
            for split, (first, second) in enumerate(half_splits(labels, repeats, seed)):
                null = Data(nulls[split], axes, data.is_wide).view(method)
                for measure, given in (("stability", rows), ("stability_null", null)):
                    fits = [method.fit(given[half], components, seed) for half in (first, second)]
                    value = matched_cosine(fits[0].directions, fits[1].directions)
                    found.append((name, components, measure, split, value))
                    on_fit(name)
    return pd.DataFrame(found, columns=["method", "components", "measure", "repeat", "value"])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and greatest value over repeats: `method, components, measure, mean, low, high`."""
    by = table.groupby(["method", "components", "measure"], sort=False)["value"]
    return by.agg(mean="mean", low="min", high="max").reset_index()


@dataclass(frozen=True, eq=False)
class Data:
    """Rows as scores on orthonormal axes; `is_wide`: there are more features than scores."""

    scores: Float[np.ndarray, "rows rank"]
    axes: Float[np.ndarray, "rank features"]
    is_wide: bool

    def view(self, method: Method) -> Rows:
        """What a method is fitted on: the scores where that is cheaper and all the same to it, else the features."""
        if method.is_rotation_invariant:
            return self.scores if self.is_wide else self.scores @ self.axes
        return (self.scores @ self.axes).astype(np.float32)  # NMF on twice the features: half the time


def check(matrix: Rows, labels: Int[np.ndarray, " rows"], components: int, methods: Sequence[str], folds: int) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UserError(f"factorisation {unknown[0]!r}: unknown; there are {', '.join(METHODS)}", 2)
    prompts = int(labels.max()) + 1
    if prompts < max(folds, 2):
        raise UserError(f"{folds} folds of {prompts} prompts: choose at most that many folds, or ask more", 2)
    sizes = np.sort(np.bincount(labels))
    least = int(sizes[: prompts // 2].sum())  # rows of the smallest half that could be drawn
    most = min(least - 1, matrix.shape[1] - 1)
    if components > most:
        raise UserError(f"{components} components of {matrix.shape}: halves of the rows allow at most {most}", 2)


def held_out(fitted: Factorisation, train: Rows, test: Rows) -> tuple[float, float]:
    """Share of the test rows' variance about the training mean that is rebuilt, and share of codes not zero."""
    codes = fitted.encode(test)
    left_over = ((test - fitted.decode(codes)) ** 2).sum(dtype=np.float64)
    total = ((test - train.mean(axis=0)) ** 2).sum(dtype=np.float64)
    return float(1 - left_over / total), float((codes != 0).mean())


def half_splits(
    labels: Int[np.ndarray, " rows"], repeats: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]]:
    """Random halves of the groups, as row indices."""
    return GroupShuffleSplit(repeats, test_size=0.5, random_state=seed).split(labels, groups=labels)


def matched_cosine(first: Rows, second: Rows) -> float:
    """Mean absolute cosine of two sets of directions under the best one-to-one matching; a zero direction counts 0."""
    cosines = np.abs(unit(first) @ unit(second).T)
    return float(cosines[linear_sum_assignment(cosines, maximize=True)].mean())


def unit(directions: Rows) -> Rows:
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    return directions / np.where(lengths > 0, lengths, 1.0)


def signed_parts(rows: Rows) -> Float[np.ndarray, "rows 2*features"]:
    """Positive and negative parts, both without a sign."""
    return np.concatenate([np.maximum(rows, 0), np.maximum(-rows, 0)], axis=1)
