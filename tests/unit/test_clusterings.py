"""Clusterings and indices against scikit-learn, scipy and numbers by hand."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import is_valid_linkage
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.metrics import (
    adjusted_rand_score,
    calinski_harabasz_score,
    davies_bouldin_score,
    euclidean_distances,
    silhouette_samples,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

from src.utils.decomposition.clusterings import (
    ALGORITHMS,
    FOUND,
    NOISE,
    ClusterSettings,
    chosen_counts,
    cluster_rows,
    fit_mixture,
    knee,
    mean_silhouette,
    neighbour_knee,
    principal_axes,
    principal_scores,
    validation,
    ward_linkage,
    within_squares,
)
from src.utils.errors import UserError

ROWS, TRUE_COUNT = 150, 3
SETTINGS = ClusterSettings(counts=(2, 3, 4, 6), min_samples=5, min_cluster_size=15, seed=1)


def blobs(distance: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = np.arange(ROWS) % TRUE_COUNT
    return rng.normal(size=(ROWS, 6)) + distance * np.eye(6)[truth], truth


def test_without_centring_the_scores_are_those_of_truncated_svd() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(60, 12)) * np.arange(12, 0, -1) + 5
    known = TruncatedSVD(4, algorithm="arpack").fit(matrix)
    found = principal_axes(matrix, 4, centre=False)
    np.testing.assert_allclose(found.scores, known.transform(matrix), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.components, known.components_, atol=1e-9)
    np.testing.assert_allclose(found.explained, known.explained_variance_ratio_)
    assert (found.mean == 0).all() and not np.allclose(found.scores.mean(axis=0), 0, atol=1)
    centred = principal_axes(matrix, 4)
    np.testing.assert_allclose(centred.scores, PCA(4, svd_solver="full").fit_transform(matrix))
    np.testing.assert_allclose(centred.mean, matrix.mean(axis=0))


def test_principal_scores_keep_distances_and_drop_what_has_no_variance() -> None:
    rng = np.random.default_rng(0)
    wide = (rng.normal(size=(40, 5)) @ rng.normal(size=(5, 300)) + 7).astype(np.float32).astype(np.float64)
    scores = principal_scores(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 300)), 50)
    assert scores.shape == (40, 5) and scores.dtype == np.float64
    np.testing.assert_allclose(
        euclidean_distances(principal_scores(wide, 50)), euclidean_distances(wide), rtol=1e-6, atol=1e-4
    )
    assert principal_scores(wide, 3).shape == (40, 3)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_finds_far_clusters(algorithm: str) -> None:
    matrix, truth = blobs()
    found = cluster_rows(matrix, SETTINGS)
    key = (algorithm, FOUND if algorithm in ("dbscan", "hdbscan") else TRUE_COUNT)
    labels = found[key].labels
    clustered = labels != NOISE
    assert clustered.mean() > 0.8
    assert adjusted_rand_score(truth[clustered], labels[clustered]) == 1


def test_labels_are_those_of_scikit_learn() -> None:
    matrix, _ = blobs(2.0)  # near enough to differ between algorithms
    found = cluster_rows(matrix, SETTINGS)
    assert list(found) == [
        *((name, k) for name in ("kmeans", "gaussian_mixture", "ward") for k in SETTINGS.counts),
        ("dbscan", FOUND),
        ("hdbscan", FOUND),
    ]
    for k in SETTINGS.counts:
        expected = KMeans(k, n_init=1, random_state=1).fit(matrix).labels_
        np.testing.assert_array_equal(found["kmeans", k].labels, expected)
        ward = AgglomerativeClustering(k, linkage="ward").fit(matrix).labels_
        assert adjusted_rand_score(ward, found["ward", k].labels) == 1
        assert set(found["ward", k].labels) == set(range(k))
    eps = found["dbscan", FOUND].eps
    np.testing.assert_array_equal(found["dbscan", FOUND].labels, DBSCAN(eps=eps, min_samples=5).fit(matrix).labels_)
    expected = HDBSCAN(min_cluster_size=15, copy=True).fit(matrix).labels_
    assert adjusted_rand_score(expected, found["hdbscan", FOUND].labels) == 1


def test_the_same_settings_give_the_same_labels_and_another_seed_others() -> None:
    matrix, _ = blobs(1.0)
    first, second = cluster_rows(matrix, SETTINGS), cluster_rows(matrix, SETTINGS, euclidean_distances(matrix))
    for key, one in first.items():
        np.testing.assert_array_equal(one.labels, second[key].labels)
    other = cluster_rows(matrix, ClusterSettings(counts=(6,), algorithms=("kmeans",), seed=2))
    assert adjusted_rand_score(other["kmeans", 6].labels, first["kmeans", 6].labels) < 1


def test_bic_from_its_definition() -> None:
    matrix, _ = blobs()
    clustering = cluster_rows(matrix, SETTINGS)["gaussian_mixture", 3]
    mixture = fit_mixture(matrix, 3, SETTINGS)
    parameters = 3 * 6 + 3 * 6 + 2  # means, variances, weights
    likelihood = mixture.score(matrix) * ROWS
    assert clustering.bic == pytest.approx(parameters * np.log(ROWS) - 2 * likelihood)


def test_a_mixture_does_not_depend_on_the_unit_of_the_data() -> None:
    matrix, _ = blobs(1.0)
    for scale in (1e-4, 1e4):
        np.testing.assert_array_equal(
            fit_mixture(matrix * scale, 4, SETTINGS).predict(matrix * scale),
            fit_mixture(matrix, 4, SETTINGS).predict(matrix),
        )


def test_the_linkage_matrix_is_one_of_scipy() -> None:
    matrix, _ = blobs()
    tree = ward_linkage(matrix)
    assert is_valid_linkage(tree) and tree.shape == (ROWS - 1, 4) and np.all(np.diff(tree[:, 2]) >= 0)
    assert tree[-2, 2] > 5 * tree[-3, 2]  # three clusters are far apart


def test_the_silhouette_is_that_of_scikit_learn_also_with_noise_and_single_rows() -> None:
    matrix, _ = blobs(1.0)
    distances = euclidean_distances(matrix)
    labels = np.random.default_rng(0).integers(0, 5, ROWS) * 3
    labels[7] = 99  # alone
    assert mean_silhouette(distances, labels) == pytest.approx(silhouette_score(matrix, labels))
    labels[[1, 2, 3]] = NOISE
    clustered = labels != NOISE
    expected = silhouette_samples(matrix[clustered], labels[clustered]).sum() / ROWS
    assert mean_silhouette(distances, labels) == pytest.approx(expected)
    for useless in (np.full(ROWS, NOISE), np.where(labels == NOISE, NOISE, 0)):
        assert np.isnan(mean_silhouette(distances, useless))


def test_the_silhouette_by_hand() -> None:
    matrix = np.array([[0.0], [1.0], [10.0], [14.0]])
    widths = [1 - 1 / 12, 1 - 1 / 11, 1 - 4 / 9.5, 1 - 4 / 13.5]
    assert mean_silhouette(euclidean_distances(matrix), np.array([0, 0, 1, 1])) == pytest.approx(np.mean(widths))
    assert within_squares(matrix, np.array([0, 0, 1, 1])) == pytest.approx(0.5 + 8)
    assert within_squares(matrix, np.array([NOISE, NOISE, 1, 1])) == pytest.approx(8)


def test_the_knee_by_hand() -> None:
    assert knee([1, 2, 3, 4, 5], [100, 40, 30, 25, 20]) == 1  # 40 under the line from 100 to 20
    assert knee([0, 1, 2, 3], [0, 0.1, 0.3, 3]) == 2
    rng = np.random.default_rng(1)
    matrix = np.vstack([rng.normal(size=(95, 2)), rng.normal(0, 60, (5, 2))])
    nearest = NearestNeighbors(n_neighbors=5).fit(matrix).kneighbors(matrix)[0][:, -1]  # oneself is the first
    eps = neighbour_knee(euclidean_distances(matrix), 5)
    assert np.isclose(nearest, eps).any()
    assert eps >= np.sort(nearest)[90] and eps < np.sort(nearest)[97]  # the five far rows are behind the knee


def test_the_validation_table_against_scikit_learn() -> None:
    matrix, _ = blobs()
    found = cluster_rows(matrix, SETTINGS)
    table = validation(matrix, found).set_index(["algorithm", "k"])
    for (algorithm, k), one in found.items():
        row = table.loc[(algorithm, k)].to_dict()
        kept = one.labels != NOISE
        part = matrix[kept], one.labels[kept]
        assert row["calinski_harabasz"] == pytest.approx(calinski_harabasz_score(*part))
        assert row["davies_bouldin"] == pytest.approx(davies_bouldin_score(*part))
        assert row["noise_share"] == pytest.approx(np.mean(~kept)) and row["clusters"] == len(set(part[1]))
        assert row["largest_share"] == pytest.approx(np.bincount(part[1]).max() / ROWS)
    expected = KMeans(4, n_init=1, random_state=1).fit(matrix).inertia_
    assert table.loc[("kmeans", 4), "inertia"] == pytest.approx(expected)
    assert table["bic"].notna().sum() == len(SETTINGS.counts) and table["eps"].notna().sum() == 1


def test_every_index_chooses_the_planted_count() -> None:
    matrix, _ = blobs()
    chosen = chosen_counts(matrix, validation(matrix, cluster_rows(matrix, SETTINGS)), SETTINGS)
    assert len(chosen) == 3 * 3 + 2 and set(chosen["k"]) == {TRUE_COUNT}
    assert {"elbow", "bic"} < set(chosen["index"])


def test_bic_chooses_one_component_for_gaussian_rows() -> None:
    matrix = principal_scores(np.random.default_rng(0).normal(size=(ROWS, 4)) * [9, 3, 1, 1], 4)
    chosen = chosen_counts(matrix, validation(matrix, cluster_rows(matrix, SETTINGS)), SETTINGS)
    assert dict(zip(chosen["index"], chosen["k"], strict=True))["bic"] == 1
    assert set(chosen.loc[chosen["index"] != "bic", "k"]) <= set(SETTINGS.counts)  # the others cannot say so


def test_rows_without_any_clustering_are_described() -> None:
    matrix = np.random.default_rng(0).normal(size=(40, 3))
    settings = ClusterSettings(algorithms=("dbscan",), eps=1e-6)
    row = validation(matrix, cluster_rows(matrix, settings)).iloc[0]
    assert (row["clusters"], row["noise_share"], row["largest_share"], row["inertia"]) == (0, 1, 0, 0)
    assert np.isnan(row["silhouette"]) and np.isnan(row["davies_bouldin"])


@pytest.mark.parametrize("count", [1, 40, 50])
def test_counts_that_cannot_be_are_named(count: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.raises(UserError, match=rf"^{count} clusters for 40 usable rows; .* from 2 to 39$"):
        cluster_rows(matrix, ClusterSettings(counts=(2, count)))
    with pytest.raises(UserError, match="'spectral' is not known; choose from kmeans"):
        cluster_rows(matrix, ClusterSettings(counts=(2,), algorithms=("spectral",)))
