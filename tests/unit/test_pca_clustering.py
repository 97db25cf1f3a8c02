"""PCA against numpy's SVD, planted clusters found again, agreement against scikit-learn."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, silhouette_score

from src.utils.cluster_labels import EXCLUDED
from src.utils.decomposition.clusterings import ClusterSettings
from src.utils.errors import UserError
from src.utils.pca_clustering import Representation, check_counts, cluster_all

ROWS, WIDTH = 90, 12
BROKEN = [3, 40]


@pytest.fixture
def planted() -> tuple[pd.DataFrame, np.ndarray]:
    """Three far clusters in 12 dimensions; the facet is the cluster, the dimension is not."""
    random = np.random.default_rng(2)
    truth = np.arange(ROWS) % 3
    matrix = (random.normal(0, 20, (3, WIDTH))[truth] + random.normal(size=(ROWS, WIDTH))).astype(np.float32)
    frame = pd.DataFrame(
        {
            "prompt_id": [f"q{i:02d}" for i in range(ROWS)],
            "sample": 0,
            "subset": ["first" if i < 45 else "second" for i in range(ROWS)],
            "facet": [f"facet_{cluster}" for cluster in truth],
            "em_activations_layer_2": list(matrix),
        }
    )
    return frame, truth


def rows_of(frame: pd.DataFrame) -> Representation:
    matrix = np.stack(list(frame["em_activations_layer_2"]))
    usable = np.array([np.isfinite(row).all() for row in matrix])
    return Representation("em_activations_layer_2", 2, matrix, usable)


def clusterings(frame: pd.DataFrame, chosen: Representation, *counts: int, components: int = 50) -> dict:
    targets = {"dimension": frame["subset"].to_numpy(), "facet": frame["facet"].to_numpy()}
    return cluster_all(frame, chosen, components, ClusterSettings(counts or (3,), restarts=4), targets)


def test_pca_is_the_svd_of_the_centred_matrix(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    frame, _ = planted
    chosen = rows_of(frame)
    result = clusterings(frame, chosen)[3]
    matrix = chosen.matrix.astype(np.float64)
    left, sizes, right = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(result["pca_mean"], matrix.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(result["explained_variance_ratio"], sizes**2 / (sizes**2).sum(), atol=1e-5)
    signs = np.sign((result["pca_components"] * right).sum(axis=1))
    assert set(signs) <= {-1.0, 1.0}
    np.testing.assert_allclose(result["pca_components"], signs[:, None] * right, atol=2e-3)
    np.testing.assert_allclose(result["pca_scores"], left * sizes * signs, atol=2e-3 * sizes[0] / np.sqrt(ROWS))
    # and the scores with the components give the activations back
    np.testing.assert_allclose(result["pca_scores"] @ result["pca_components"] + result["pca_mean"], matrix, atol=1e-3)


def test_components_are_cut_to_what_there_is(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    frame, _ = planted
    assert clusterings(frame, rows_of(frame), components=5)[3]["pca_scores"].shape == (ROWS, 5)
    assert clusterings(frame, rows_of(frame), components=50)[3]["pca_scores"].shape == (ROWS, WIDTH)
    few = frame.iloc[:6]
    assert clusterings(few, rows_of(few), components=50)[3]["pca_scores"].shape == (6, 5)  # centred


def test_planted_clusters_are_found(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    frame, truth = planted
    result = clusterings(frame, rows_of(frame), 3, 7)
    labels = result[3]["labels"]
    assert adjusted_rand_score(truth, labels) == 1
    assert result[3]["ami_facet"] == pytest.approx(1)
    assert result[3]["ami_dimension"] == pytest.approx(adjusted_mutual_info_score(frame["subset"], labels))
    assert result[7]["ami_facet"] == pytest.approx(adjusted_mutual_info_score(frame["facet"], result[7]["labels"]))
    assert result[3]["silhouette"] > 0.8 > result[7]["silhouette"]
    scores = result[3]["pca_scores"]
    assert result[3]["silhouette"] == pytest.approx(silhouette_score(scores, labels), abs=1e-4)
    centroids = np.stack([scores[labels == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(result[3]["centroids"], centroids, atol=1e-3)
    assert result[3]["inertia"] == pytest.approx(((scores - centroids[labels]) ** 2).sum(), rel=1e-3)
    assert len(np.unique(result[7]["labels"])) == 7
    assert result[3]["prompt_ids"] == frame["prompt_id"].tolist() and set(result[3]["samples"]) == {0}


def test_the_same_seed_gives_the_same_clusters(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    frame, _ = planted
    first, second = (clusterings(frame, rows_of(frame), 5)[5] for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name])


def test_rows_that_are_no_number_take_no_part(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    frame, truth = planted
    whole = clusterings(frame.drop(index=BROKEN).reset_index(drop=True), rows_of(frame.drop(index=BROKEN)))
    activations = frame["em_activations_layer_2"].tolist()
    activations[BROKEN[0]] = np.full(WIDTH, np.nan, dtype=np.float32)
    activations[BROKEN[1]] = np.append(activations[BROKEN[1]][:-1], np.float32(np.inf))
    frame["em_activations_layer_2"] = activations
    chosen = rows_of(frame)
    assert np.flatnonzero(~chosen.usable).tolist() == BROKEN

    result = clusterings(frame, chosen)[3]
    labels = result["labels"]
    assert np.flatnonzero(labels == EXCLUDED).tolist() == BROKEN and EXCLUDED == -1
    assert np.isnan(result["pca_scores"][BROKEN]).all() and np.isnan(result["silhouette_samples"][BROKEN]).all()
    assert np.isfinite(np.delete(result["pca_scores"], BROKEN, axis=0)).all()
    assert len(labels) == len(result["prompt_ids"]) == ROWS
    kept = np.delete(np.arange(ROWS), BROKEN)
    assert adjusted_rand_score(truth[kept], labels[kept]) == 1
    np.testing.assert_array_equal(labels[kept], whole[3]["labels"])  # as if they had never been there
    np.testing.assert_allclose(result["pca_scores"][kept], whole[3]["pca_scores"], atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 6, 50])
def test_too_many_or_too_few_clusters_say_how_many_can_be(
    count: int, planted: tuple[pd.DataFrame, np.ndarray], tmp_path: Path
) -> None:
    chosen, path = rows_of(planted[0].iloc[:6]), tmp_path / "scored.pkl"
    with pytest.raises(UserError) as caught:
        check_counts(chosen, [3, count], path)
    assert caught.value.message == (
        f"{path}: 6 usable rows cannot be cut into {count} clusters; choose --cluster-counts from 2 to 5"
    )
    assert caught.value.exit_code == 2
    check_counts(chosen, [2, 5], path)
    assert set(clusterings(planted[0].iloc[:6], chosen, 2, 5)) == {2, 5}


def test_each_count_is_reported(planted: tuple[pd.DataFrame, np.ndarray]) -> None:
    seen: list[int] = []
    cluster_all(planted[0], rows_of(planted[0]), 4, ClusterSettings((4, 2)), {}, seen.append)
    assert seen == [4, 2]
