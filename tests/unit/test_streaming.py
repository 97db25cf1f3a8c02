"""Streamed PCA and k-means against the same on the whole matrix, however the stream is cut."""

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from src.utils.decomposition.streaming import (
    Blocks,
    even_sample,
    rebatched,
    streaming_kmeans,
    streaming_pca,
)
from src.utils.errors import UserError


def correlated(rows: int, features: int, mean: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, features)) * 2.0 ** -np.arange(features)
    rotation = np.linalg.qr(rng.normal(size=(features, features)))[0]
    return (mixed @ rotation + mean).astype(np.float32)


def cut(matrix: np.ndarray, sizes: list[int]) -> Blocks:
    """Blocks of these sizes over and over (0 is a shard without a token), in one buffer that is used again."""

    def blocks() -> Iterator[np.ndarray]:
        start, number = 0, 0
        buffer = np.empty_like(matrix)
        while start < len(matrix):
            size = min(sizes[number % len(sizes)], len(matrix) - start)
            buffer[:size] = matrix[start : start + size]
            yield buffer[:size]
            start, number = start + size, number + 1

    return blocks


def test_the_pca_is_that_of_the_whole_matrix_also_far_from_the_origin() -> None:
    matrix = correlated(3000, 10, mean=300.0)
    streamed = streaming_pca(cut(matrix, [700, 1, 0, 333]), 6, batch_rows=512)
    whole = PCA(6, svd_solver="full").fit(matrix.astype(np.float64))
    np.testing.assert_allclose(streamed.variances, whole.explained_variance_, rtol=1e-10)
    np.testing.assert_allclose(streamed.explained_variance_ratio, whole.explained_variance_ratio_, rtol=1e-10)
    np.testing.assert_allclose(streamed.mean, whole.mean_, rtol=1e-12)
    cosines = np.abs((streamed.components * whole.components_).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-9)
    assert (streamed.components.max(axis=1) >= -streamed.components.min(axis=1)).all() and streamed.rows == 3000
    expected = (matrix.astype(np.float64) - whole.mean_) @ streamed.components.T
    np.testing.assert_allclose(streamed.transform(matrix), expected, atol=1e-3)


def test_results_do_not_depend_on_how_the_stream_is_cut() -> None:
    matrix = correlated(2500, 8, mean=2.0)
    ways = [cut(matrix, sizes) for sizes in ([2500], [1], [97, 0, 5], [600, 1200])]
    found = [streaming_pca(way, 4, batch_rows=256) for way in ways]
    assert len({one.components.tobytes() + one.variances.tobytes() for one in found}) == 1
    assert len({even_sample(way(), 40, seed=3).tobytes() for way in ways}) == 1
    clustered = [streaming_kmeans(way, 5, seed=1, batch_rows=256) for way in ways]
    assert len({one.centres.tobytes() for one in clustered}) == 1
    assert len({tuple(np.concatenate(list(one.labels(way())))) for one, way in zip(clustered, ways, strict=True)}) == 1


@pytest.mark.parametrize("sizes", [[3], [10, 0, 7], [1000]])
def test_rebatching_keeps_every_row_in_its_place(sizes: list[int]) -> None:
    matrix = np.arange(101, dtype=np.float32)[:, None]
    batches = [batch.copy() for batch in rebatched(cut(matrix, sizes)(), 8)]
    assert [len(batch) for batch in batches] == [8] * 12 + [5]
    np.testing.assert_array_equal(np.concatenate(batches), matrix)


def test_the_sample_is_even() -> None:
    matrix = np.arange(60, dtype=np.float32)[:, None]
    times = np.zeros(60, dtype=int)
    for seed in range(400):
        sample = even_sample(cut(matrix, [9])(), 12, seed)[:, 0].astype(int)
        assert len(sample) == 12 and (np.diff(sample) > 0).all()
        times[sample] += 1
    assert min(binomtest(int(count), 400, 12 / 60).pvalue for count in times) > 0.05 / 60
    np.testing.assert_array_equal(even_sample(cut(matrix, [9])(), 100, 0), matrix)


def planted(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Six groups of very different sizes, one after another in the stream, as topics are."""
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.choice(6, size=rows, p=[0.4, 0.3, 0.15, 0.1, 0.03, 0.02]))
    centres = 12 * rng.normal(size=(6, 9))
    return (centres[groups] + rng.normal(size=(rows, 9)) + 50).astype(np.float32), groups


def test_kmeans_finds_planted_groups_in_a_stream_that_is_sorted_by_them() -> None:
    matrix, groups = planted(8000)
    found = streaming_kmeans(cut(matrix, [500]), 6, seed=0, batch_rows=512)
    labels = np.concatenate(list(found.labels(cut(matrix, [500])())))
    assert adjusted_rand_score(groups, labels) == 1.0
    distances = cdist(matrix.astype(np.float64), found.centres.astype(np.float64), "sqeuclidean")
    np.testing.assert_array_equal(labels, distances.argmin(axis=1))
    assert found.inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
    np.testing.assert_array_equal(found.sizes, np.bincount(labels, minlength=6))
    means = np.stack([matrix[labels == label].mean(axis=0, dtype=float) for label in range(6)])
    np.testing.assert_allclose(found.centres, means, atol=0.01)


def test_kmeans_runs_on_the_scores_of_a_streamed_pca() -> None:
    matrix, groups = planted(4000)
    blocks = cut(matrix, [700])
    pca = streaming_pca(blocks, 4)
    found = streaming_kmeans(lambda: map(pca.transform, blocks()), 6, seed=0, passes=1)
    labels = np.concatenate(list(found.labels(map(pca.transform, blocks()))))
    assert adjusted_rand_score(groups, labels) == 1.0


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        def blocks() -> Iterator[np.ndarray]:
            rng = np.random.default_rng(0)
            return (rng.standard_normal((500, 60), np.float32) for _ in range(rows // 500))

        tracemalloc.start()
        pca = streaming_pca(blocks, 5, batch_rows=500)
        streaming_kmeans(lambda: map(pca.transform, blocks()), 3, seed=0, batch_rows=500)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1000)  # what is imported on the way
    assert peak(20_000) < 1.2 * peak(4000)


def test_what_cannot_be_done_is_said() -> None:
    matrix = correlated(20, 5, mean=0.0)
    with pytest.raises(UserError, match="6 components of 20 rows of 5 features; at most 5"):
        streaming_pca(cut(matrix, [4]), 6)
    with pytest.raises(UserError, match="30 clusters of 20 rows"):
        streaming_kmeans(cut(matrix, [4]), 30, seed=0)
    with pytest.raises(UserError, match="there is no row"):
        streaming_pca(lambda: iter(()), 2)
    with pytest.raises(UserError, match="0 rows"):
        streaming_kmeans(lambda: iter(()), 2, seed=0)
    matrix[7, 2] = np.nan
    with pytest.raises(UserError, match="a value is not finite"):
        streaming_pca(cut(matrix, [4]), 2)
