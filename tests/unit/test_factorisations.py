"""Factorisations against scikit-learn by hand and on data whose sources are planted."""

from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import NMF, PCA, sparse_encode
from sklearn.model_selection import GroupKFold

from src.utils.decomposition.factorisations import (
    METHODS,
    SPARSITY,
    compare_factorisations,
    fit_dictionary,
    half_splits,
    matched_cosine,
    summarise,
)
from src.utils.errors import UserError

ROWS, FEATURES, SOURCES = 400, 20, 5


def planted(kind: str, rows: int = ROWS, features: int = FEATURES, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sources of equal size on orthonormal directions, and a little noise: PCA cannot tell the sources apart."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(features, SOURCES)))[0].T
    sources = {
        "heavy": lambda: rng.laplace(size=(rows, SOURCES)),
        "sparse": lambda: (rng.random((rows, SOURCES)) < 0.15) * rng.normal(size=(rows, SOURCES)) * 3,
        "gaussian": lambda: rng.normal(size=(rows, SOURCES)),
    }[kind]()
    sources /= sources.std(axis=0)
    return (sources @ directions + 0.05 * rng.normal(size=(rows, features))).astype(np.float32), directions


def values(table: pd.DataFrame, method: str, measure: str) -> np.ndarray:
    return table[(table["method"] == method) & (table["measure"] == measure)]["value"].to_numpy()


def compared(kind: str, **options: Any) -> pd.DataFrame:
    matrix, _ = planted(kind)
    return compare_factorisations(matrix, np.arange(ROWS) // 2, SOURCES, seed=0, **options)


def test_reconstruction_is_that_of_scikit_learn_on_folds_of_whole_prompts() -> None:
    matrix, _ = planted("heavy")
    groups = np.array([f"q{row // 3}" for row in range(ROWS)])
    table = compare_factorisations(matrix, groups, 2, seed=5, methods=("pca", "ica"), folds=4, repeats=1)
    numbered = np.unique(groups, return_inverse=True)[1]
    for fold, (train, test) in enumerate(GroupKFold(4, shuffle=True, random_state=5).split(matrix, groups=numbered)):
        assert not set(groups[train]) & set(groups[test])
        whole = matrix.astype(np.float64)
        pca = PCA(2, svd_solver="full").fit(whole[train])
        rebuilt = pca.inverse_transform(pca.transform(whole[test]))
        share = 1 - ((whole[test] - rebuilt) ** 2).sum() / ((whole[test] - whole[train].mean(axis=0)) ** 2).sum()
        assert values(table, "pca", "held_out")[fold] == pytest.approx(share, abs=1e-7)
        assert values(table, "ica", "held_out")[fold] == pytest.approx(share, abs=1e-7)  # the same subspace
    assert (values(table, "pca", "active") == 1).all()


def test_nmf_and_dictionary_rebuild_what_scikit_learn_rebuilds() -> None:
    """Held-out shares: of scikit-learn's NMF to 1e-3 (ours is in float32), of LARS on the dictionary to 1e-4."""
    matrix, _ = planted("sparse")
    groups = np.unique((np.arange(ROWS) // 2).astype(str), return_inverse=True)[1]
    table = compare_factorisations(
        matrix, np.arange(ROWS) // 2, 3, seed=1, methods=("nmf", "dictionary"), folds=2, repeats=1
    )
    centred = matrix.astype(np.float64) - matrix.mean(axis=0, dtype=np.float64)
    rows = centred / np.sqrt((centred**2).sum(axis=1).mean())
    for fold, (train, test) in enumerate(GroupKFold(2, shuffle=True, random_state=1).split(rows, groups=groups)):
        mean = rows[train].mean(axis=0)

        def parts(given: np.ndarray, mean: np.ndarray = mean) -> np.ndarray:
            return np.hstack([(given - mean).clip(min=0), (mean - given).clip(min=0)])

        nmf = NMF(3, init="nndsvd", tol=1e-3, max_iter=50, random_state=1).fit(parts(rows[train]))
        positive, negative = np.hsplit(nmf.inverse_transform(nmf.transform(parts(rows[test]))), 2)
        lasso = fit_dictionary(rows[train], 3, 1)
        codes = sparse_encode(rows[test] - mean, lasso.directions, algorithm="lasso_lars", alpha=SPARSITY)
        rebuilt_by = {"nmf": (mean + positive - negative, 1e-3), "dictionary": (mean + codes @ lasso.directions, 1e-4)}
        for method, (rebuilt, tolerance) in rebuilt_by.items():
            share = 1 - ((rows[test] - rebuilt) ** 2).sum() / ((rows[test] - mean) ** 2).sum()
            assert share > 0.1
            assert values(table, method, "held_out")[fold] == pytest.approx(share, abs=tolerance), method
        assert values(table, "dictionary", "active")[fold] == pytest.approx((codes != 0).mean())


def test_a_method_that_sees_the_sources_is_stable_and_one_that_does_not_is_as_its_null() -> None:
    table = compared("heavy", methods=("pca", "ica"), repeats=6)
    assert values(table, "ica", "stability").mean() > 0.9
    assert values(table, "ica", "stability").min() > values(table, "ica", "stability_null").max()
    null = values(table, "pca", "stability_null")
    assert values(table, "pca", "stability").mean() < null.mean() + 2 * null.std()


def test_sparse_codes_are_what_the_dictionary_finds() -> None:
    table = compared("sparse", methods=("dictionary",), repeats=3, folds=2)
    assert values(table, "dictionary", "stability").min() > values(table, "dictionary", "stability_null").max()
    assert values(table, "dictionary", "stability").mean() > 0.95
    assert values(table, "dictionary", "active").mean() < 0.6


@pytest.mark.parametrize("method", ["pca", "ica", "dictionary"])
def test_fits_name_the_planted_directions(method: str) -> None:
    matrix, directions = planted("sparse")
    scale = np.sqrt((matrix**2).sum(axis=1).mean())
    fitted = METHODS[method].fit(matrix / scale, SOURCES, 0)
    if method == "pca":  # the subspace, not the sources
        np.testing.assert_allclose(np.linalg.norm(fitted.directions @ directions.T, axis=1), 1, atol=0.01)
    else:
        assert matched_cosine(fitted.directions, directions) > 0.97


def test_nmf_finds_parts_in_the_features_and_keeps_their_signs() -> None:
    rng = np.random.default_rng(0)
    parts = np.zeros((3, 30))
    parts[0, :10], parts[1, 10:20], parts[2, 20:] = 1, -1, np.tile([1, -1], 5)
    matrix = (rng.random((200, 3)) < 0.4) * rng.random((200, 3)) * 4 @ parts + 0.05 * rng.normal(size=(200, 30))
    fitted = METHODS["nmf"].fit(matrix.astype(np.float32), 6, 0)
    cosines = (
        fitted.directions @ parts.T / np.outer(np.linalg.norm(fitted.directions, axis=1), np.linalg.norm(parts, axis=1))
    )
    assert (cosines.max(axis=0) > 0.95).all()
    codes = fitted.encode(matrix.astype(np.float32))
    assert (codes >= 0).all()
    rebuilt = fitted.decode(codes)
    assert ((matrix - rebuilt) ** 2).sum() < 0.1 * ((matrix - matrix.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("method", list(METHODS))
def test_only_nmf_sees_the_axes(method: str) -> None:
    """The claim on which wide matrices are turned: a rotation of the features turns the components and nothing else."""
    matrix, _ = planted("sparse")
    matrix = matrix.astype(np.float64) / np.sqrt((matrix**2).sum(axis=1).mean())
    matrix[:, 0] += np.abs(matrix[:, 1])
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(FEATURES, FEATURES)))[0]
    fits = [METHODS[method].fit(rows, SOURCES, 0) for rows in (matrix, matrix @ rotation)]
    agreement = matched_cosine(fits[0].directions @ rotation, fits[1].directions)
    assert (agreement > 0.999) == METHODS[method].is_rotation_invariant
    if METHODS[method].is_rotation_invariant:
        rebuilt = [fits[0].decode(fits[0].encode(matrix)) @ rotation, fits[1].decode(fits[1].encode(matrix @ rotation))]
        np.testing.assert_allclose(rebuilt[0], rebuilt[1], atol=0.02)


def test_more_features_than_rows_give_the_same_table_as_the_rows_in_their_own_span() -> None:
    matrix, _ = planted("heavy", rows=60, features=59)
    wide = matrix @ np.linalg.qr(np.random.default_rng(2).normal(size=(200, 59)))[0].T
    options: dict[str, Any] = {"methods": ("pca",), "folds": 3, "repeats": 2}
    tables = [compare_factorisations(given, np.arange(60), 3, seed=0, **options) for given in (matrix, wide)]
    for measure in ("held_out", "stability"):
        np.testing.assert_allclose(*(values(table, "pca", measure) for table in tables), rtol=1e-4)


def test_gaussian_data_are_no_more_stable_than_their_null() -> None:
    matrix = np.random.default_rng(3).normal(size=(200, 12)) * 1.3 ** -np.arange(12)
    table = compare_factorisations(matrix, np.arange(200), 3, seed=1, methods=("pca", "ica"), repeats=8)
    for method in ("pca", "ica"):
        real, null = values(table, method, "stability"), values(table, method, "stability_null")
        assert abs(real.mean() - null.mean()) < 3 * null.std()


def test_matching_is_the_best_of_all_permutations() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    best = max(np.abs((unit[0] * unit[1][list(order)]).sum(axis=1)).mean() for order in permutations(range(4)))
    assert matched_cosine(first, second) == pytest.approx(best)
    assert matched_cosine(first, -3 * first[[2, 0, 3, 1]]) == pytest.approx(1)
    assert matched_cosine(first, np.vstack([first[:3], np.zeros(6)])) == pytest.approx(0.75)


def test_halves_never_part_a_prompt() -> None:
    labels = np.repeat(np.arange(11), 3)
    for first, second in half_splits(labels, 5, 0):
        assert not set(labels[first]) & set(labels[second])
        assert sorted([*first, *second]) == list(range(33)) and abs(len(first) - len(second)) <= 3


def test_one_seed_gives_one_table_and_the_summary_is_of_its_repeats() -> None:
    matrix, _ = planted("heavy", rows=90)
    fits: list[str] = []

    def table_of(on_fit: Any) -> pd.DataFrame:
        return compare_factorisations(matrix, np.arange(90), 3, seed=0, folds=3, repeats=1, on_fit=on_fit)

    table = table_of(fits.append)
    pd.testing.assert_frame_equal(table, table_of(len))
    assert set(table["method"]) == set(METHODS) and (table["components"] == 3).all()
    assert [fits.count(name) for name in METHODS] == [3 + 2] * len(METHODS)
    summary = summarise(table).set_index(["method", "measure"])
    held_out = values(table, "nmf", "held_out")
    assert summary.loc[("nmf", "held_out"), "mean"] == pytest.approx(held_out.mean())
    assert tuple(summary.loc[("nmf", "held_out"), ["low", "high"]]) == (held_out.min(), held_out.max())


def test_what_cannot_be_compared_is_said() -> None:
    matrix, _ = planted("heavy", rows=40)
    prompts = np.arange(40) // 4
    faults: list[tuple[dict[str, Any], str]] = [
        (
            {"components": 3, "seed": 0, "methods": ("pca", "sae")},
            "'sae': unknown; there are pca, ica, nmf, dictionary",
        ),
        ({"components": 3, "seed": 0, "folds": 11}, "11 folds of 10 prompts"),
        ({"components": 20, "seed": 0}, "halves of the rows allow at most 19"),
    ]
    for options, message in faults:
        with pytest.raises(UserError, match=message):
            compare_factorisations(matrix, prompts, **options)
    with pytest.raises(UserError, match="all rows are the same"):
        compare_factorisations(np.ones((40, 30), np.float32), prompts, 3, seed=0)
