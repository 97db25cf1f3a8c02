"""The record of the geometry holds what the statistics give, finds what was planted, and gives reasons for the rest."""

import copy
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, silhouette_score

from src.utils.config_sections import ClusteringConfig, GeometryConfig
from src.utils.decomposition.answer_map import tsne_map, ward_tree
from src.utils.decomposition.geometry import PARTS, describe_geometry, probed
from src.utils.decomposition.geometry_report import best_probe, format_geometry, geometry_summary, smallest_found
from src.utils.decomposition.inputs import Evidence
from src.utils.decomposition.layer_evidence import study_evidence
from src.utils.decomposition.plain_records import as_plain
from src.utils.decomposition.planted import subspace_p_value
from src.utils.decomposition.power_curve import Sweep, power_curve, subspace_detector
from src.utils.decomposition.rank import half_agreement, parallel_analysis, participation_ratio
from src.utils.decomposition.report import format_beside
from src.utils.errors import UserError
from tests.study_frame import CLUSTERING, GEOMETRY, geometry_record, planted_activations

LAYERS = ["layer 1", "layer 2", "layers 1, 2 jointly"]


def evidence(rows: int = 120) -> tuple[Evidence, dict[str, Evidence]]:
    return study_evidence(*planted_activations(rows), CLUSTERING, False)


def described(rows: int, **settings: Any) -> dict[str, Any]:
    one, layers = evidence(rows)
    return describe_geometry(one, layers, CLUSTERING, GEOMETRY.model_copy(update=settings), 70, 50)


def planted_scores() -> tuple[np.ndarray, np.ndarray]:
    """Principal scores by scikit-learn, and the dimension of each row."""
    frame, tensors = planted_activations()
    matrix = tensors["em.blocks.2.hook_resid_pre"].astype(float)
    return PCA(CLUSTERING.components, svd_solver="full").fit_transform(matrix), frame["subset"].to_numpy()


def test_the_record_is_json_and_has_every_part() -> None:
    record = geometry_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert set(record) == {"evidence", *PARTS} and not any("reason" in record[part] for part in PARTS)
    about = record["evidence"]
    assert (about["name"], about["rows"], about["features"], about["components"]) == ("em_layer_2", 120, 12, 8)


def test_numbers_that_json_has_not_are_none() -> None:
    table = pd.DataFrame({"k": [3], "p": [np.nan], "name": ["a"]})
    value = {"x": np.array([1.0, np.inf]), 3: (np.float32(0.5), np.int64(2), np.bool_(True)), "table": table}
    plain = as_plain(value)
    assert plain == {"x": [1.0, None], "3": [0.5, 2, True], "table": [{"k": 3, "p": None, "name": "a"}]}
    assert [type(item) for item in plain["3"]] == [float, int, bool]


def test_rank_is_that_of_its_functions() -> None:
    rank = geometry_record()["rank"]
    one, _ = evidence()
    groups = one.frame["prompt_id"].to_numpy()
    parallel = parallel_analysis(one.matrix, CLUSTERING.seed, CLUSTERING.components, GEOMETRY.parallel_resamples)
    assert rank["parallel_analysis"]["eigenvalues"] == pytest.approx(parallel.eigenvalues.tolist(), rel=1e-5)
    assert rank["parallel_analysis"]["limit"] == pytest.approx(parallel.limit.tolist(), rel=1e-5)
    assert rank["parallel_analysis"]["retained"] == parallel.retained >= 2
    values = np.linalg.eigvalsh(np.cov(one.matrix.astype(float).T))
    ratio = rank["participation"]
    assert ratio["estimate"] == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-5)
    assert ratio["low"] == pytest.approx(participation_ratio(one.matrix, groups, CLUSTERING.seed).low)
    overlap = half_agreement(one.matrix, groups, CLUSTERING.seed, splits=GEOMETRY.splits).overlap
    assert rank["half_agreement"]["overlap"] == pytest.approx(overlap)


def test_clusters_are_those_of_scikit_learn_and_the_planted_topic_is_named() -> None:
    scores, dimensions = planted_scores()
    clusters = geometry_record()["clusters"]
    labels = KMeans(4, n_init=1, random_state=CLUSTERING.seed, max_iter=300).fit(scores).labels_
    keys = ("algorithm", "k", "statistic")
    tests = {tuple(row[key] for key in keys): row for row in clusters["tests"]}
    # silhouette, gap and bootstrap; density algorithms have no gap, and only k-means and mixtures depend on a seed
    assert len(tests) == 2 * 3 * 3 + 2 * 2 + 2 * 2
    row = tests["kmeans", 4, "silhouette"]
    assert row["observed"] == pytest.approx(silhouette_score(scores, labels))
    assert row["draws"] == GEOMETRY.draws and tests["ward", 4, "gap"]["draws"] == GEOMETRY.draws_others
    assert row["null_low"] <= row["null_mean"] <= row["null_high"] < row["observed"]
    assert row["p"] == pytest.approx(1 / 26) and row["p"] <= row["p_max"] <= row["p_all"] < 0.05
    found = {(row["algorithm"], row["k"]): row for row in clusters["explanations"]}
    assert len(found) == 8
    for algorithm in ("kmeans", "gaussian_mixture", "ward"):
        assert found[algorithm, 4]["kind"] == "topic" and "the dimension asked about" in found[algorithm, 4]["sentence"]
    numbers = found["kmeans", 4]["numbers"]
    assert numbers["ami_dimension"] == pytest.approx(adjusted_mutual_info_score(dimensions, labels))
    is_misaligned = np.arange(120) % 2
    assert numbers["ami_misaligned"] == pytest.approx(adjusted_mutual_info_score(is_misaligned, labels))
    assert numbers["structure_p"] == min(row["p_all"] for key, row in tests.items() if key[:2] == ("kmeans", 4))
    gaps = {(row["reference"], row["algorithm"], row["k"]): row["gap"] for row in clusters["gap"]}
    assert len(gaps) == 2 * 3 * 3  # k = 1 as well
    assert gaps["covariance", "kmeans", 4] == tests["kmeans", 4, "gap"]["excess"]


def test_negatives_of_the_geometry_come_with_their_power() -> None:
    record, (one, _) = geometry_record(), evidence()
    power, asked = record["power"], one.frame["subset"].to_numpy()
    p = subspace_p_value(one.matrix, asked, one.frame["prompt_id"].to_numpy(), CLUSTERING.seed)
    assert power["subspaces"] == {"p": p, "draws": 199, "planted_draws": GEOMETRY.power_permutations} and p > 0.05
    assert power["clusters"]["draws"] == 20 and power["clusters"]["k"] == 4
    found = {(row["detector"], row["angle"]): row["snr"] for row in power["smallest"]}
    assert found["subspaces", 90.0] == 4 and len(found) == 4
    whole = power_curve(
        one.matrix, asked, one.frame["prompt_id"].to_numpy().astype(str), {"subspaces": subspace_detector(59)},
        Sweep([90.0], [4, 12], 36, CLUSTERING.seed),
    )  # fmt: skip
    detected = {
        row["snr"]: row["detected"] for row in power["curve"] if row["angle"] == 90 and row["detector"][0] == "s"
    }
    assert {row["snr"]: row["detected"] for row in whole.to_dict("records") if row["snr"]} == detected
    lines = format_geometry(record).splitlines()
    assert any(
        line.startswith("subspaces: the dimensions' directions are alike") and "SNR 4 at 90°" in line for line in lines
    )
    changed = copy.deepcopy(record)
    changed["clusters"]["explanations"][0]["kind"] = "no structure beyond covariance"
    smallest = smallest_found(power, "clusters")
    assert f"no structure beyond covariance: by a test of clusters, {smallest}" in format_geometry(changed).splitlines()


def test_layers_are_tested_jointly_and_noise_is_not_clustered() -> None:
    layers = geometry_record()["layers"]
    assert layers["names"] == LAYERS == list(layers["rank"])
    p = {(row["layer"], row["k"]): row["p_max"] for row in layers["tests"] if row["statistic"] == "silhouette"}
    assert len(p) == 6 and p["layer 2", 4] < 0.05 < p["layer 1", 4]
    assert layers["rank"]["layer 2"] == geometry_record()["rank"]
    assert layers["rank"]["layer 1"]["parallel_analysis"]["retained"] == 0
    assert geometry_record()["layers"]["tests"][0]["draws"] == GEOMETRY.layer_draws


def test_probes_read_what_was_planted_and_the_topic_does_not_know_it() -> None:
    probes = geometry_record()["probes"]
    rows = {row["predictor"]: row for row in probes["misaligned"]["table"] if row["measure"] == "auroc"}
    assert rows["activations"]["estimate"] > 0.85 and rows["activations"]["excess"] is None
    assert rows["topic"]["excess_low"] > 0 and rows["shuffled_labels"]["estimate"] < 0.65
    transfer = probes["transfer"]["table"]
    assert len(transfer) == 16 and min(row["auroc"] for row in transfer) > 0.7  # one direction, shared by all
    best = best_probe(probes)
    assert best is not None and best["target"] == "misaligned"
    assert best["over_topic"]["estimate"] == rows["topic"]["excess"]
    assert best["over_best"]["estimate"] == min(
        row["excess"] for name, row in rows.items() if name not in ("activations", "shuffled_labels", "prompt_identity")
    )
    assert rows["prompt_identity"]["estimate"] is None and rows["prompt_identity"]["excess"] is None
    assert "ceiling of knowing the prompt: undefined, one answer a prompt" in format_geometry(geometry_record())


def test_misalignment_of_one_kind_is_not_probed_and_says_so() -> None:
    frame, tensors = planted_activations(60)
    frame["em_score"] = 3.0
    one, _ = study_evidence(frame, tensors, CLUSTERING, False)
    probes = as_plain(probed(one, GEOMETRY, 0, 70, 50))
    assert "all rows are aligned" in probes["misaligned"]["reason"] and "table" in probes["dimension"]
    assert {row["auroc"] for row in probes["transfer"]["table"]} == {None}
    found = geometry_record() | {"probes": probes}
    best = geometry_summary(found)["best_probe"]
    assert best["target"] == "dimension" and best["over_topic"]["estimate"] <= 0  # the topic is the dimension
    assert "probe of misaligned: target: all rows are aligned" in format_geometry(found)


def test_answers_without_a_score_are_not_probed() -> None:
    frame, tensors = planted_activations(60)
    frame.loc[:9, "em_score"] = np.nan
    one, _ = study_evidence(frame, tensors, CLUSTERING, False)
    probes = probed(one, GEOMETRY, 0, 70, 50)
    assert (probes["misaligned"]["rows"], probes["dimension"]["rows"]) == (50, 60)


def test_a_study_too_small_for_a_part_has_its_reason_and_the_other_parts() -> None:
    found = described(7, probes=False)
    json.dumps(found, allow_nan=False)
    assert found["probes"] == {"reason": "probes: switched off (--no-probes)"}
    assert "halves of the rows allow at most" in found["factorisations"]["reason"]
    assert "have no halves of that many" in found["rank"]["half_agreement"]["reason"]
    assert found["clusters"]["counts_left_out"] == [3, 4] and found["clusters"]["gap"] == []
    assert [row["algorithm"] for row in found["clusters"]["explanations"]] == ["dbscan", "hdbscan"]
    assert "none of k = [3, 4] is under half of 7 prompts" in found["layers"]["reason"]
    text = format_geometry(found)
    assert "k = 3 4: too many clusters to resample" in text and "probes: switched off" in text
    assert geometry_summary(found)["best_probe"] is None
    assert "rank" in format_beside(geometry_summary(found))


def test_layers_share_their_rows_and_those_that_do_not_differ_are_left_out() -> None:
    frame, tensors = planted_activations()
    tensors["em.blocks.1.hook_resid_pre"][3] = np.nan
    one, layers = study_evidence(frame, tensors, CLUSTERING, False)
    assert len(one.rows) == 120 and list(layers) == LAYERS
    assert all(len(layer.rows) == len(layer.frame) == 119 and 3 not in layer.rows for layer in layers.values())
    np.testing.assert_array_equal(layers["layer 2"].matrix, tensors["em.blocks.2.hook_resid_pre"][one.rows != 3])

    frame["em_activations_layer_0"] = list(tensors["em.blocks.0.hook_resid_pre"])
    difference = CLUSTERING.model_copy(update={"representation": "em_minus_base"})
    assert list(study_evidence(frame, tensors, difference, False)[1]) == LAYERS  # layer 0 is the same in both models
    with pytest.raises(UserError, match="do not differ"):
        study_evidence(frame, tensors, difference.model_copy(update={"layer": 0}), False)


def test_the_tree_is_scipys_cut_at_its_top() -> None:
    scores, dimensions = planted_scores()
    tree, whole = ward_tree(scores, dimensions, leaves=10), linkage(scores, "ward")
    merges = np.array(tree["merges"])
    assert np.array_equal(merges[:, 2], whole[-9:, 2]) and merges[-1, 3] == 10
    counts = np.array([list(leaf["counts"].values()) for leaf in tree["leaves"]])
    assert counts.sum(axis=0).tolist() == [(dimensions == name).sum() for name in tree["leaves"][0]["counts"]]
    assert np.array_equal(counts.sum(axis=1), [leaf["rows"] for leaf in tree["leaves"]])
    sizes = np.bincount(fcluster(whole, 10, "maxclust"))[1:]
    assert sorted(sizes.tolist()) == sorted(leaf["rows"] for leaf in tree["leaves"])
    of_leaf = fcluster(merges, 4, "maxclust")
    held = [counts[of_leaf == cluster].sum() for cluster in np.unique(of_leaf)]
    assert sorted(held) == sorted(np.bincount(fcluster(whole, 4, "maxclust"))[1:].tolist())
    with pytest.raises(UserError, match="three are needed"):
        ward_tree(scores[:2], dimensions[:2])


def test_the_map_is_the_same_every_time_and_keeps_topics_together() -> None:
    scores, dimensions = planted_scores()
    one, again = tsne_map(scores, 3), tsne_map(scores, 3)
    assert np.array_equal(one["x"], again["x"]) and np.array_equal(one["y"], again["y"])
    labels = KMeans(4, n_init=3, random_state=0).fit_predict(np.column_stack([one["x"], one["y"]]))
    assert adjusted_rand_score(dimensions, labels) > 0.9
    assert tsne_map(scores[:10], 0)["perplexity"] == 3
    with pytest.raises(UserError, match="five of two are needed"):
        tsne_map(scores[:, :1], 0)
    recorded = geometry_record()["tsne"]
    assert recorded["prompt_ids"] == planted_activations()[0]["prompt_id"].tolist()
    assert len(recorded["x"]) == len(recorded["y"]) == len(recorded["samples"]) == 120


def test_the_summary_and_its_lines_say_what_the_record_says() -> None:
    record = geometry_record()
    summary = geometry_summary(record)
    json.dumps(summary, allow_nan=False)
    assert summary["rank"] == record["rank"]["parallel_analysis"]["retained"]
    assert summary["clusterings"] == sum(summary["kinds"].values()) == 8
    assert summary["unexplained"] == summary["kinds"].get("unexplained structure", 0)
    lines = format_geometry(record).splitlines()
    for row in record["clusters"]["explanations"]:
        assert any(row["sentence"] in line and line.startswith(row["algorithm"]) for line in lines)
    chosen = {row["index"]: row["k"] for row in record["clusters"]["chosen"] if row["algorithm"] == "ward"}
    stated = f"k = {chosen['silhouette']} by silhouette, k = {chosen['calinski_harabasz']} by Calinski-Harabasz"
    assert any(line.startswith(f"internal indices, ward: {stated}") for line in lines)
    assert lines[1] == f"rank: {summary['rank']} components above the 95th percentile of parallel analysis"
    assert summary["misalignment"] == summary["kinds"].get("misalignment", 0)
    stated = f"{summary['misalignment']} are misalignment, {summary['unexplained']} unexplained structure"
    assert f"of {summary['clusterings']} clusterings {stated}" in format_beside(summary)


def test_the_defaults_are_those_of_the_issue() -> None:
    settings = GeometryConfig()
    assert (settings.draws, settings.draws_others, settings.permutations) == (1000, 100, 1000)
    assert settings.parallel_resamples == 200 and settings.probes and settings.jobs == 1
    assert ClusteringConfig(layer=1, cluster_counts=[3]).representation == "em"
