"""What is planted, by hand; and the test of whether dimensions vary in subspaces of their own."""

from itertools import combinations, permutations

import numpy as np
import pytest
from scipy.stats import binom

from src.utils.decomposition.planted import covariance_distances, plant, subspace_p_value, without_means
from src.utils.errors import UserError

NAMES = ("finance", "moral", "political", "technology")


def study(rows: int = 160, features: int = 24, each: int = 1, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Activations with a steep spectrum and dimension means, their dimensions and prompts."""
    rng = np.random.default_rng(seed)
    prompt = np.arange(rows) // each
    dimensions = np.array(NAMES)[prompt % 4]
    spectrum = np.arange(1, features + 1) ** -0.7
    rotation = np.linalg.qr(rng.standard_normal((features, features)))[0]
    matrix = (rng.standard_normal((rows, features)) * spectrum) @ rotation
    return matrix + rng.standard_normal((4, features))[prompt % 4], dimensions, np.array([f"q{n}" for n in prompt])


@pytest.mark.parametrize("angle", [0, 25, 60, 90])
def test_what_is_planted(angle: float) -> None:
    matrix, dimensions, groups = study(each=2)
    planted = plant(matrix, dimensions, angle, 3.0, seed=5, groups=groups)
    cosines = planted.directions @ planted.directions.T
    np.testing.assert_allclose(cosines, np.where(np.eye(4), 1, np.cos(np.radians(angle))), atol=1e-9)

    plain = plant(matrix, dimensions, angle, 0.0, seed=5, groups=groups)
    added = planted.matrix - plain.matrix
    for place, name in enumerate(planted.names):
        rows = dimensions == name
        np.testing.assert_allclose(
            added[rows], np.outer(planted.expressed[rows], planted.length * planted.directions[place]), atol=1e-9
        )
        assert planted.expressed[rows].sum() == 20  # 10 of 20 prompts, two rows each
    assert (planted.expressed[::2] == planted.expressed[1::2]).all()


def test_the_size_is_in_deviations_along_a_random_direction() -> None:
    matrix, dimensions, groups = study(rows=400)
    residuals = without_means(matrix, dimensions)
    rng = np.random.default_rng(0)
    random = rng.standard_normal((20_000, matrix.shape[1]))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    deviation = np.sqrt(((residuals @ random.T) ** 2).sum(axis=0).mean() / (400 - 4))
    assert plant(matrix, dimensions, 90, 2.5, seed=0, groups=groups).length == pytest.approx(2.5 * deviation, rel=0.02)


def test_residuals_are_exchanged_by_prompt_and_means_stay() -> None:
    matrix, dimensions, groups = study(each=2)
    residuals = without_means(matrix, dimensions)
    means = matrix - residuals
    for name in NAMES:
        np.testing.assert_allclose(
            means[dimensions == name], matrix[dimensions == name].mean(axis=0)[None].repeat(40, 0)
        )
    moved = plant(matrix, dimensions, 90, 0.0, seed=1, groups=groups).matrix - means
    order = [int(np.argmin(((residuals - row) ** 2).sum(axis=1))) for row in moved]
    np.testing.assert_allclose(moved, residuals[order], atol=1e-9)
    assert sorted(order) == list(range(160)) and [groups[at] for at in order[::2]] == [groups[at] for at in order[1::2]]
    assert (dimensions[order] == dimensions).mean() < 0.5


def test_gaussian_residuals_have_the_pooled_covariance() -> None:
    matrix, dimensions, _ = study(rows=120, features=10)
    residuals = without_means(matrix, dimensions)
    pooled = np.zeros((10, 10))
    for seed in range(200):
        drawn = plant(matrix, dimensions, 90, 0.0, seed, null="gaussian").matrix - (matrix - residuals)
        pooled += drawn.T @ drawn / 200
    expected = residuals.T @ residuals
    assert np.abs(pooled - expected).max() < 0.05 * expected.diagonal().max()


def own_subspaces(matrix: np.ndarray, dimensions: np.ndarray, seed: int) -> np.ndarray:
    """A strong direction of each dimension's own."""
    rng = np.random.default_rng(seed)
    own = np.linalg.qr(rng.standard_normal((matrix.shape[1], 4)))[0].T
    index = np.array([NAMES.index(name) for name in dimensions])
    return matrix + 2 * rng.standard_normal((len(matrix), 1)) * own[index]


def test_structure_of_the_real_data_is_destroyed_before_any_is_planted() -> None:
    matrix, dimensions, groups = study()
    matrix = own_subspaces(matrix, dimensions, seed=1)
    assert subspace_p_value(matrix, dimensions, groups, seed=0) == pytest.approx(1 / 200)
    for null in ("exchanged", "gaussian"):
        found = [
            subspace_p_value(plant(matrix, dimensions, 90, 0.0, seed, groups, null).matrix, dimensions, groups, seed)
            for seed in range(40)
        ]
        assert sum(p < 0.05 for p in found) <= binom.ppf(0.999, 40, 0.05)


@pytest.mark.parametrize(("rows", "features", "each"), [(120, 24, 2), (100, 300, 1)])
def test_the_subspace_test_keeps_its_level_with_many_features_too(rows: int, features: int, each: int) -> None:
    found = []
    for seed in range(100):
        matrix, dimensions, groups = study(rows, features, each, seed=seed)
        plain = plant(matrix, dimensions, 90, 0.0, seed, groups).matrix
        found.append(subspace_p_value(plain, dimensions, groups, seed, permutations=39))
    assert sum(p < 0.06 for p in found) <= binom.ppf(0.999, 100, 0.05)  # p <= 2/40, a level of 0.05 exactly
    assert np.mean(found) == pytest.approx(0.5, abs=0.1)  # 3.5 standard errors


def test_covariance_distances_by_hand_and_free_of_means() -> None:
    rng = np.random.default_rng(2)
    rows, labels = rng.standard_normal((13, 5)), np.array([0, 1, 2, 1, 0, 0, 2, 1, 2, 0, 1, 2, 2])
    gram = rows @ rows.T

    def trace_of_square(part: list[int]) -> float:
        return float(
            np.mean([gram[i, j] ** 2 for i, j in permutations(part, 2)])
            - 2 * np.mean([gram[i, j] * gram[j, k] for i, j, k in permutations(part, 3)])
            + np.mean([gram[i, j] * gram[k, m] for i, j, k, m in permutations(part, 4)])
        )

    def trace_of_product(one: list[int], other: list[int]) -> float:
        return float(
            np.mean([gram[i, j] ** 2 for i in one for j in other])
            - np.mean([gram[i, j] * gram[k, j] for i, k in permutations(one, 2) for j in other])
            - np.mean([gram[i, j] * gram[i, m] for i in one for j, m in permutations(other, 2)])
            + np.mean([gram[i, j] * gram[k, m] for i, k in permutations(one, 2) for j, m in permutations(other, 2)])
        )

    partitions = np.array([labels, rng.permutation(labels), labels[::-1]])
    for partition, found in zip(partitions, covariance_distances(gram, partitions), strict=True):
        parts = [np.flatnonzero(partition == group).tolist() for group in range(3)]
        expected = sum(
            trace_of_square(one) + trace_of_square(other) - 2 * trace_of_product(one, other)
            for one, other in combinations(parts, 2)
        )
        assert found == pytest.approx(expected)
    moved = rows + 10 * rng.standard_normal((3, 5))[labels]
    np.testing.assert_allclose(
        covariance_distances(moved @ moved.T, partitions[:1]), covariance_distances(gram, partitions[:1]), rtol=1e-6
    )


def test_covariance_distances_are_unbiased() -> None:
    rng = np.random.default_rng(3)
    labels, deviations = np.repeat([[0, 1]], 12, axis=1), np.array([[1, 1, 1], [2, 1, 0.5]])
    truth = ((deviations[0] ** 2 - deviations[1] ** 2) ** 2).sum()
    drawn = []
    for _ in range(1500):
        rows = rng.standard_normal((24, 3)) * deviations[labels[0]] + 2 * labels[0][:, None]
        drawn.append(covariance_distances(rows @ rows.T, labels)[0])
    assert np.mean(drawn) == pytest.approx(truth, abs=4 * np.std(drawn) / np.sqrt(1500))


def test_answers_to_one_prompt_count_once() -> None:
    matrix, dimensions, groups = study(rows=80)
    once = subspace_p_value(matrix, dimensions, groups, seed=0)
    twice = subspace_p_value(*(np.repeat(each, 2, axis=0) for each in (matrix, dimensions, groups)), seed=0)
    assert 1 / 200 < once < 1 and twice == once


def test_what_cannot_be_planted_is_refused() -> None:
    matrix, dimensions, groups = study()
    with pytest.raises(UserError, match="angle 120: not between 0 and 90"):
        plant(matrix, dimensions, 120, 1, seed=0)
    with pytest.raises(UserError, match="4 features hold no 4 planted directions"):
        plant(matrix[:, :4], dimensions, 90, 1, seed=0)
    with pytest.raises(UserError, match="needs two of them with four prompts each"):
        subspace_p_value(matrix, np.full(160, "x"), groups, seed=0)
