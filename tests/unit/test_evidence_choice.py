"""What step 5 is asked to look at is what it clusters, and what is taken off was estimated where it may be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.metrics import adjusted_mutual_info_score, silhouette_score

from src.utils.decomposition import geometry
from src.utils.decomposition.clusterings import ClusterSettings
from src.utils.decomposition.evidence_choice import EvidenceChoice, clustered, on_training_rows, prepared
from src.utils.decomposition.geometry import describe_geometry
from src.utils.decomposition.geometry_report import format_geometry
from src.utils.decomposition.layer_evidence import chosen_evidence, configured_choice, study_evidence
from src.utils.decomposition.token_geometry import describe_tokens, majority
from src.utils.decomposition.token_inputs import token_evidence
from src.utils.errors import UserError
from src.utils.pca_clustering import cluster_all
from src.utils.token_shards import TokenReader, TokenShard, gather_shards, shard_path, write_shard
from tests.study_frame import CLUSTERING, GEOMETRY, geometry_record, planted_activations

FRAME, TENSORS = planted_activations()
SITE = "em.blocks.2.hook_resid_pre"


def test_nothing_said_is_the_frames_own_layer_as_it_is() -> None:
    choice = configured_choice(CLUSTERING, False)
    assert choice == EvidenceChoice("em", (2,)) and choice.preprocessing is None and choice.name == "em_layer_2"
    evidence, layers = chosen_evidence(FRAME, TENSORS, choice)
    again, others = study_evidence(FRAME, TENSORS, CLUSTERING, False)
    np.testing.assert_array_equal(evidence.matrix, again.matrix)
    assert list(layers) == list(others) == ["layer 1", "layer 2", "layers 1, 2 jointly"]
    ours = clustered(FRAME, evidence, choice)
    np.testing.assert_array_equal(ours.matrix, np.stack(list(FRAME["em_activations_layer_2"])))
    assert (ours.name, ours.layer) == ("em_activations_layer_2", 2)
    assert prepared(evidence, None) is evidence and on_training_rows(None) is None


def test_the_clusters_of_the_files_are_those_that_the_geometry_tests() -> None:
    """One row that the base model has lost, and two starts of k-means, in both places."""
    tensors = TENSORS | {"base.blocks.2.hook_resid_pre": TENSORS["base.blocks.2.hook_resid_pre"].copy()}
    tensors["base.blocks.2.hook_resid_pre"][7] = np.nan
    asked = CLUSTERING.model_copy(update={"restarts": 2, "cluster_counts": [3, 7]})
    choice = configured_choice(asked, False)
    evidence, _ = chosen_evidence(FRAME, tensors, choice)
    fits = ClusterSettings((3, 7), restarts=asked.restarts, seed=asked.seed)
    targets = {name: FRAME[column].to_numpy() for name, column in (("dimension", "subset"), ("facet", "facet"))}
    files = cluster_all(FRAME, clustered(FRAME, evidence, choice), asked.components, fits, targets)
    record = geometry.tested_clusters(evidence, asked, GEOMETRY.model_copy(update={"algorithms": ["kmeans"]}), 70, 50)
    assert files[3]["labels"][7] == -1
    tests = {(row["k"], row["statistic"]): row["observed"] for row in record["tests"].to_dict("records")}
    for explanation in record["explanations"]:
        k, numbers = explanation["k"], explanation["numbers"]
        assert files[k]["silhouette"] == pytest.approx(tests[k, "silhouette"])
        assert np.log(files[k]["inertia"]) == pytest.approx(-tests[k, "gap"])
        assert files[k]["ami_facet"] == pytest.approx(numbers["ami_facet"])


def test_layers_jointly_count_alike_and_flagged_rows_have_no_place() -> None:
    frame = FRAME.assign(flags=[["norm_outlier_em"] if row in (3, 9) else [] for row in range(len(FRAME))])
    choice = EvidenceChoice("em", (1, 2), drop_flagged=True)
    evidence, _ = chosen_evidence(frame, TENSORS, choice)
    rows = clustered(frame, evidence, choice)
    assert rows.name == "em_layers_1_2" and rows.matrix.shape == (120, 24)
    assert np.flatnonzero(~rows.usable).tolist() == [3, 9] and np.isnan(rows.matrix[[3, 9]]).all()
    for half in (rows.matrix[rows.usable, :12], rows.matrix[rows.usable, 12:]):
        assert np.linalg.norm(half, axis=1).mean() == pytest.approx(1, rel=1e-5)


def test_without_dimension_means_and_whitened_the_topic_is_gone() -> None:
    choice = EvidenceChoice("em", (2,), remove_dimension_means=True, whiten=True)
    assert choice.name == "em_layer_2_without_dimension_means_whitened"
    evidence, _ = chosen_evidence(FRAME, TENSORS, choice)
    rows, topic = clustered(FRAME, evidence, choice).matrix, FRAME["subset"].to_numpy()
    for name in np.unique(topic):
        np.testing.assert_allclose(rows[topic == name].mean(axis=0), 0, atol=1e-4)
    variances = np.linalg.eigvalsh(np.cov(rows.T))
    assert variances.max() / variances.min() < 2 < np.ptp(np.linalg.eigvalsh(np.cov(evidence.matrix.T)))
    raw, left = (
        adjusted_mutual_info_score(topic, KMeans(4, n_init=4, random_state=0).fit_predict(PCA(8).fit_transform(part)))
        for part in (evidence.matrix, rows)
    )
    assert raw > 0.9 and left < 0.05


def test_without_centring_no_mean_is_removed() -> None:
    choice = EvidenceChoice("em", (2,), centre=False)
    assert choice.name == "em_layer_2_uncentred" and choice.preprocessing is None
    evidence, layers = chosen_evidence(FRAME, TENSORS, choice)
    rows = clustered(FRAME, evidence, choice)
    assert rows.name == "em_layer_2_uncentred"
    np.testing.assert_array_equal(rows.matrix, TENSORS[SITE])
    changes = {"centre": False, "cluster_counts": [3]}
    settings = GEOMETRY.model_copy(update={"power_repeats": 0, "probes": False, "algorithms": ["kmeans"]})
    clustering = CLUSTERING.model_copy(update=changes)
    record = describe_geometry(evidence, layers, clustering, settings, 70, 50, choice=choice)
    assert record["evidence"]["centred"] is False and record["power"] == {
        "reason": "power: nothing was planted (--power-repeats 0)"
    }
    scores = TruncatedSVD(CLUSTERING.components, algorithm="arpack").fit_transform(TENSORS[SITE].astype(np.float64))
    labels = KMeans(3, n_init=1, random_state=CLUSTERING.seed, max_iter=300).fit(scores).labels_
    row = next(row for row in record["clusters"]["indices"] if row["k"] == 3)
    assert row["silhouette"] == pytest.approx(silhouette_score(scores, labels))
    fits = ClusterSettings((3,), restarts=1, seed=CLUSTERING.seed)
    result = cluster_all(FRAME, rows, CLUSTERING.components, fits, {}, centre=False)[3]
    np.testing.assert_allclose(np.abs(result["pca_scores"]), np.abs(scores), rtol=1e-4, atol=1e-4)
    assert (result["pca_mean"] == 0).all()
    whitened = EvidenceChoice("em", (2,), whiten=True, centre=False)
    assert np.abs(clustered(FRAME, evidence, whitened).matrix.mean(axis=0)).max() > 0.1


def test_what_is_removed_in_a_fold_was_estimated_on_its_training_rows() -> None:
    prepare = on_training_rows(EvidenceChoice("em", (2,), remove_dimension_means=True).preprocessing)
    assert prepare is not None
    matrix, topic = TENSORS[SITE].astype(np.float64), FRAME["subset"].to_numpy(object)
    train = np.arange(120) % 3 > 0
    transform = prepare(matrix[train], topic[train])
    for name in np.unique(topic):
        held_out = ~train & (topic == name)
        expected = matrix[held_out] - matrix[train & (topic == name)].mean(axis=0)
        np.testing.assert_allclose(transform(matrix[held_out], topic[held_out]), expected, atol=1e-9)


@pytest.fixture(scope="module")
def without_means() -> dict[str, Any]:
    choice = EvidenceChoice("em", (2,), remove_dimension_means=True)
    evidence, layers = chosen_evidence(FRAME, TENSORS, choice)
    settings = GEOMETRY.model_copy(update={"jobs": 2})
    return describe_geometry(evidence, layers, CLUSTERING, settings, 70, 50, choice=choice)


def test_the_record_says_what_was_done_and_probes_do_not_see_the_dimension(without_means: dict[str, Any]) -> None:
    about = without_means["evidence"]
    assert about["dimension_means_removed"] and not about["whitened"] and about["layers"] == [2]
    assert about["name"] == "em_layer_2_without_dimension_means"
    assert "decided by the dimension" in without_means["probes"]["dimension"]["reason"]
    score = next(row for row in without_means["probes"]["misaligned"]["table"] if row["predictor"] == "activations")
    assert score["estimate"] > 0.9  # what was planted beside the topic is still there
    kinds = {row["kind"] for row in without_means["clusters"]["explanations"]}
    assert "topic" not in kinds and "topic" in {row["kind"] for row in geometry_record()["clusters"]["explanations"]}


def test_factorisations_take_the_rows_as_recorded(without_means: dict[str, Any]) -> None:
    assert without_means["factorisations"] == geometry_record()["factorisations"]


def test_two_processes_make_the_record_of_one() -> None:
    evidence, layers = study_evidence(FRAME, TENSORS, CLUSTERING, False)
    parts: list[str] = []
    settings = GEOMETRY.model_copy(update={"jobs": 2})
    assert describe_geometry(evidence, layers, CLUSTERING, settings, 70, 50, parts.append) == geometry_record()
    assert sorted(parts) == sorted(set(geometry_record()) - {"evidence"})


def test_a_site_that_was_not_recorded_is_named() -> None:
    with pytest.raises(UserError, match="site attn_out: not recorded; there are resid"):
        chosen_evidence(FRAME, TENSORS, EvidenceChoice("em", (2,), "attn_out"))
    attention = {name.replace("resid_pre", "attn_out"): values for name, values in TENSORS.items()}
    choice = EvidenceChoice("em", (2,), "attn_out")
    evidence, layers = chosen_evidence(FRAME, TENSORS | attention, choice)
    np.testing.assert_array_equal(evidence.matrix, TENSORS[SITE])
    assert clustered(FRAME, evidence, choice).name == "em_attn_out_layer_2" and "layer 1" in layers


def tokens_of_answers(folder: Path, a_row: int = 5) -> TokenReader:
    """Tokens whose direction is their place in the answer, whatever was asked, beside a little of their own answer."""
    rng, places = np.random.default_rng(1), np.tile(np.arange(a_row), 120)
    rows = np.repeat(np.arange(120), a_row)
    matrix = 9 * np.eye(12, dtype=np.float32)[places] + rng.normal(0, 0.5, (600, 12)).astype(np.float32)
    (folder / "parts").mkdir()
    for number, part in enumerate(np.array_split(np.arange(600), [200, 400])):
        shard = TokenShard(
            rows[part], np.ones(len(part), np.int64), {"blocks.2.hook_resid_pre": torch.from_numpy(matrix[part])}
        )
        write_shard(shard_path(folder / "parts", "em", number), [shard])
    (folder / "tokens").mkdir()
    gather_shards(folder / "parts", folder / "tokens", 120)
    return TokenReader(folder / "tokens")


def test_tokens_that_cluster_by_their_place_are_said_to_be_that(tmp_path: Path) -> None:
    evidence = token_evidence(FRAME, tokens_of_answers(tmp_path), "em", [2], drop_flagged=False)
    record = describe_tokens(evidence, FRAME, 8, [4, 5], seed=0)
    assert (record["tokens"], record["answers"], len(record["explained"])) == (600, 120, 8)
    four, five = record["clusters"]
    assert five["sizes"] == [120] * 5 and sum(four["sizes"]) == 600
    assert five["place"] > 0.7 and abs(five["dimension"]) < 0.02 and abs(five["facet"]) < 0.02
    lines = format_geometry(geometry_record() | {"tokens": record})
    assert "tokens: 600 of 120 answers" in lines and "tokens, k = 5: AMI with dimension" in lines
    assert "(answer means: dimension 1.00, facet 0.70)" in lines
    assert "tokens: no shards" in format_geometry(geometry_record() | {"tokens": {"reason": "no shards"}})


def test_the_majority_of_an_answer_is_its_commonest_label() -> None:
    labels, rows = np.array([2, 2, 0, 1, 0, 1]), np.array([7, 7, 7, 9, 9, 9])
    assert majority(labels, rows).tolist() == [2, 2, 2, 1, 1, 1]


def test_every_setting_of_step_5_is_in_the_choice() -> None:
    changes = {"layers_jointly": [2, 1, 2], "site": "mlp_out", "pooling": "prompt_mean", "whiten": True}
    changes |= {"remove_dimension_means": True, "representation": "em_minus_base", "centre": False}
    settings = CLUSTERING.model_copy(update=changes)
    expected = EvidenceChoice("em_minus_base", (2, 1), "mlp_out", "prompt_mean", True, True, True, False)
    assert configured_choice(settings, True) == expected
