"""Ranks against computations of their own, by scipy and by TransformerLens, and against planted ones."""

import numpy as np
import pytest
import torch
from scipy import linalg
from transformer_lens.tools.analysis.projection_kernel import orthonormal_subspace, projection_kernel

from src.utils.decomposition.prompt_resampling import exchange_prompts, halve_prompts, prompt_weights
from src.utils.decomposition.rank import (
    half_agreement,
    half_angles,
    leading_subspace,
    overlaps,
    parallel_analysis,
    participation_ratio,
    subspace_angles,
)
from src.utils.errors import UserError


def prompts(rows: int, each: int = 1) -> np.ndarray:
    return np.array([f"q{row // each}" for row in range(rows)])


def planted(rows: int, features: int, rank: int, strength: float, seed: int) -> np.ndarray:
    """Noise of unit variance and `rank` directions of `strength` times its deviation along them."""
    rng = np.random.default_rng(seed)
    directions = linalg.orth(rng.standard_normal((features, rank)))
    latent = rng.standard_normal((rows, rank)) * strength
    return (rng.standard_normal((rows, features)) + latent @ directions.T).astype(np.float32)


@pytest.mark.parametrize(("rows", "features"), [(60, 25), (40, 90)])
@pytest.mark.parametrize("standardise", [True, False])
def test_parallel_analysis_is_that_of_corrcoef_and_shuffled_columns(
    rows: int, features: int, standardise: bool
) -> None:
    matrix = planted(rows, features, 2, 5, seed=1) * np.linspace(0.5, 2, features, dtype=np.float32)
    found = parallel_analysis(matrix, seed=3, components=8, resamples=30, standardise=standardise)

    spectrum = np.corrcoef if standardise else np.cov
    by_hand = np.linalg.eigvalsh(spectrum(matrix.T.astype(float)))[::-1]
    np.testing.assert_allclose(found.eigenvalues, by_hand[:8], rtol=1e-4)
    np.testing.assert_allclose(found.explained, by_hand[:8] / by_hand.sum(), rtol=1e-4)

    rng = np.random.default_rng(3)  # the same permutations, column by column
    draws = []
    for _ in range(30):
        shuffled = rng.permuted(matrix.T, axis=1)
        draws.append(np.linalg.eigvalsh(spectrum(shuffled.astype(float)))[::-1][:8])
    np.testing.assert_allclose(found.null_mean, np.mean(draws, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.limit, np.percentile(draws, 95, axis=0), rtol=1e-4)
    larger = [sum(draw[place] >= by_hand[place] for draw in draws) for place in range(8)]
    np.testing.assert_allclose(found.p_values, (1 + np.array(larger)) / 31)
    assert found.retained == next(place for place in range(8) if by_hand[place] <= found.limit[place])


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
def test_parallel_analysis_finds_a_planted_rank(rank: int) -> None:
    found = parallel_analysis(planted(300, 80, rank, 4, seed=rank), seed=0, components=20, resamples=60)
    assert found.retained == rank and not found.is_cut_off


def test_a_rank_beyond_the_components_computed_is_said_to_be_cut_off() -> None:
    found = parallel_analysis(planted(300, 80, 6, 4, seed=0), seed=0, components=4, resamples=20)
    assert (found.retained, found.is_cut_off) == (4, True)


def test_one_feature_of_large_variance_hides_nothing_and_constant_ones_do_not_count() -> None:
    matrix = planted(300, 40, 2, 4, seed=5)
    wide = np.hstack([matrix, np.full((300, 3), 7, np.float32)])
    wide[:, 0] *= 1000
    assert parallel_analysis(wide, seed=0, components=10, resamples=40).retained == 2
    raw = parallel_analysis(wide, seed=0, components=10, resamples=1, standardise=False)
    by_hand = np.linalg.eigvalsh(np.cov(wide.T.astype(float)))[::-1][:10]
    assert by_hand[0] / by_hand[9] > 1e5
    np.testing.assert_allclose(raw.eigenvalues, by_hand, rtol=1e-6)


def test_a_seed_gives_the_same_draws_and_progress_is_told() -> None:
    told: list[int] = []
    matrix = planted(50, 30, 1, 2, seed=0)
    one = parallel_analysis(matrix, seed=1, resamples=5, on_resample=told.append)
    two = parallel_analysis(matrix, seed=1, resamples=5)
    assert one.limit.tobytes() == two.limit.tobytes() and told == [1, 2, 3, 4, 5]


def test_the_participation_ratio_by_hand() -> None:
    box = np.array([[2, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]], float)  # eigenvalues 8/3, 2/3, 0
    assert participation_ratio(box, prompts(4), seed=0).estimate == pytest.approx((8 + 2) ** 2 / (64 + 4))
    line = np.outer(np.arange(6.0), np.ones(5))
    assert participation_ratio(line, prompts(6), seed=0).estimate == pytest.approx(1)


@pytest.mark.parametrize(("rows", "features"), [(30, 12), (20, 45)])
def test_the_interval_is_the_basic_bootstrap_over_prompts(rows: int, features: int) -> None:
    matrix, groups = planted(rows, features, 1, 2, seed=2), prompts(rows, each=2)
    found = participation_ratio(matrix, groups, seed=9, resamples=200)
    ratios = []
    for weights in prompt_weights(groups, 200, np.random.default_rng(9)).astype(int):
        assert (weights[::2] == weights[1::2]).all() and weights.sum() == rows
        values = np.linalg.eigvalsh(np.cov(np.repeat(matrix, weights, axis=0).T.astype(float)))
        ratios.append(values.sum() ** 2 / (values**2).sum())
    low, high = np.quantile(np.log(ratios), [0.025, 0.975])
    assert found.low == pytest.approx(found.estimate**2 / np.exp(high), rel=1e-6)
    assert found.high == pytest.approx(found.estimate**2 / np.exp(low), rel=1e-6)


def test_the_interval_covers_the_ratio_of_the_source() -> None:
    deviations = np.array([3, 2, 1, 1, 0.5, 0.5])
    truth = (deviations**2).sum() ** 2 / (deviations**4).sum()
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        found = participation_ratio(rng.standard_normal((150, 6)) * deviations, prompts(150), seed, resamples=300)
        held += found.low <= truth <= found.high
    assert held >= 87  # 95 expected; fewer has probability 0.001


def test_principal_angles_are_those_of_scipy_and_of_transformer_lens() -> None:
    rng = np.random.default_rng(4)
    matrix, half = planted(80, 200, 3, 3, seed=4), halve_prompts(prompts(80), rng)
    parts = []
    for part in (matrix[half], matrix[~half]):
        _, _, rows = np.linalg.svd(part - part.mean(axis=0), full_matrices=False)
        parts.append(rows[:3].T.astype(float))
        np.testing.assert_allclose(np.abs(np.diag(rows[:3] @ leading_subspace(part, 3)[:, ::-1])), 1, atol=1e-4)
    angles = half_angles(matrix.astype(float), half, 3)
    np.testing.assert_allclose(angles, np.sort(linalg.subspace_angles(*parts)), atol=1e-4)
    bases = [orthonormal_subspace(torch.from_numpy(part)) for part in parts]
    kernel = projection_kernel(*bases)
    assert overlaps(angles[None])[0] == pytest.approx(float(kernel.normalized), abs=1e-4)


def test_angles_by_hand() -> None:
    one, other = np.eye(4)[:, :2], np.array([[1, 0], [0, 0.5], [0, np.sqrt(0.75)], [0, 0]])
    np.testing.assert_allclose(np.degrees(subspace_angles(one, other)), [0, 60], atol=1e-6)


def test_halves_of_gaussian_data_reach_the_ceiling_and_random_subspaces_agree_by_chance() -> None:
    found = half_agreement(planted(200, 60, 2, 4, seed=0), prompts(200), seed=0, components=2, splits=40)
    low, high = found.ceiling_overlap[1:]
    assert low <= found.overlap <= high and found.p_value > 0.05
    assert found.chance_overlap == pytest.approx(2 / 60, abs=0.01)  # k / d, the mean of a squared cosine
    assert found.angles[0] <= found.angles[1] < 45 < found.chance[0]


def test_a_direction_that_hangs_on_one_prompt_does_not_come_back_in_the_other_half() -> None:
    matrix = planted(200, 60, 2, 4, seed=0)
    matrix[:4] += 80 * linalg.orth(np.random.default_rng(1).standard_normal((60, 1))).T.astype(np.float32)
    found = half_agreement(matrix, prompts(200, each=4), seed=0, components=1, splits=60)
    assert found.overlap < 0.3 < 0.9 < found.ceiling_overlap[0]
    assert found.p_value == pytest.approx(1 / 61)


def test_prompts_are_exchanged_and_halved_as_wholes() -> None:
    groups = np.array(["a", "b", "a", "c", "d", "d", "e"])
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        order = exchange_prompts(groups, rng)
        assert sorted(order) == list(range(7))
        moved = groups[order]
        assert moved[0] == moved[2] and moved[4] == moved[5]
        assert {moved[0], moved[4]} == {"a", "d"} and {moved[1], moved[3], moved[6]} == {"b", "c", "e"}
        seen.add(tuple(moved))
        half = halve_prompts(groups, rng)
        assert half[0] == half[2] and half[4] == half[5] and len(set(groups[half])) == 2
    assert len(seen) == 2 * 6


def test_what_cannot_be_computed_is_refused() -> None:
    matrix = planted(20, 10, 1, 1, seed=0)
    broken = matrix.copy()
    broken[3, 2] = np.nan
    with pytest.raises(UserError, match="1 of 20 rows are no number"):
        parallel_analysis(broken, seed=0)
    with pytest.raises(UserError, match="1 of 10 columns vary"):
        parallel_analysis(np.where(np.arange(10) == 0, matrix, 1), seed=0)
    with pytest.raises(UserError, match="all rows are alike"):
        participation_ratio(np.ones((5, 4)), prompts(5), seed=0)
    with pytest.raises(UserError, match=r"components 10: 20 prompts of rank 10 have no halves of that many"):
        half_agreement(matrix, prompts(20), seed=0, components=10)
