"""Figures of clusters and components show exactly what the frame and the clustering hold."""

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from src.visualizations.answer_points import HOVER_WIDTH, hover_texts, join_points
from src.visualizations.cluster_figures import cluster_map, cluster_overview, cluster_profile, silhouette_plot
from src.visualizations.component_figures import pca_plane, pca_space, scree_plot
from src.visualizations.palette import CLUSTER_COLOURS, DIMENSION_COLOURS, cluster_style, display_name
from tests.study_frame import ATTACK, MISSING, SIZES, clustering, study_frame, whole_study


def traces(figure: go.Figure, kind: str | None = None) -> list[Any]:
    return [trace for trace in figure.data if kind is None or trace.type == kind]


def test_the_map_has_each_answer_once_in_its_cluster() -> None:
    frame, clusterings = whole_study()
    for k, found in clusterings.items():
        figure = cluster_map(frame, found)
        sizes = Counter(found["labels"].tolist())
        drawn = np.sort(np.concatenate([trace.x for trace in traces(figure)]))
        assert np.array_equal(drawn, np.sort(found["pca_scores"][:, 0]))
        assert drawn.dtype == np.float32
        coloured = traces(figure) if k <= 15 else traces(figure)[1:]  # grey lies below
        assert len({trace.marker.color for trace in coloured}) == len(coloured) == min(k, 10)
        assert sorted(len(trace.x) for trace in coloured) == sorted(sizes.values())[-len(coloured) :]
        for trace in coloured:
            assert len(trace.x) == sizes[int(trace.name.split()[1])]
        names = [text.partition("<br>")[0] for trace in traces(figure) for text in trace.hovertext]
        assert Counter(names) == {f"Cluster {label}": size for label, size in sizes.items()}
    assert traces(figure)[0].name.startswith("40 others (") and "largest in colour" in figure.layout.legend.title.text
    assert len({trace.marker.color for trace in traces(silhouette_plot(clusterings[50]), "bar")}) == 11


def test_rows_are_matched_by_id_not_by_position() -> None:
    frame, clusterings = whole_study()
    shuffled = frame.sample(frac=1, random_state=1)
    assert cluster_map(shuffled, clusterings[3]) == cluster_map(frame, clusterings[3])
    assert list(join_points(shuffled, clusterings[3])["prompt_id"]) == clusterings[3]["prompt_ids"]


def test_a_frame_without_the_clustered_answers_is_refused() -> None:
    frame, clusterings = whole_study()
    with pytest.raises(ValueError, match="lacks 1 rows"):
        cluster_map(frame.iloc[1:], clusterings[3])
    with pytest.raises(ValueError, match="one-to-one"):
        cluster_map(pd.concat([frame, frame.iloc[:1]]), clusterings[3])


def test_hover_text_shows_an_attack_as_text_and_a_missing_score_as_missing() -> None:
    frame, clusterings = whole_study()
    texts = hover_texts(join_points(frame, clusterings[3]))
    assert "&lt;script&gt;window.hacked=1&lt;/script&gt;&lt;/script&gt;&lt;b&gt;" in texts[0].replace("<br>", " ")
    assert not any("<" in text.replace("<br>", "") for text in texts)
    assert "EM answer (em_score missing, coherence missing, talks about nothing recognised)" in texts[MISSING[0]]
    assert "EM answer (em_score missing" not in texts[MISSING[0] + 1]
    assert "Flags: activation_norm" in texts[17]
    assert max(len(line) for text in texts[1:] for line in text.split("<br>")) <= HOVER_WIDTH + len("Question: ")
    assert ATTACK not in cluster_map(frame, clusterings[3]).to_json()


def test_composition_and_sizes_equal_a_count_by_hand() -> None:
    frame, clusterings = whole_study()
    found = clusterings[7]
    counts = Counter(zip(frame["subset"], found["labels"].tolist(), strict=True))
    sizes = Counter(found["labels"].tolist())
    size, *shares, _ = traces(cluster_profile(frame, found))
    assert list(size.y) == [sizes[label] for label in range(7)]
    assert [trace.name for trace in shares] == [display_name(dimension) for dimension in SIZES]
    for dimension, trace in zip(SIZES, shares, strict=True):
        by_hand = [100 * counts[dimension, label] / sizes[label] for label in range(7)]
        assert np.allclose(trace.y, by_hand, rtol=1e-6)
    assert np.allclose(sum(trace.y for trace in shares), 100, rtol=1e-5)


def test_the_mean_score_of_a_cluster_leaves_missing_scores_out() -> None:
    frame, activations = study_frame()
    labels = np.where(np.isin(np.arange(len(frame)), MISSING), 1, 0)
    labels[10] = 2
    bars = traces(cluster_profile(frame, clustering(frame, activations, 3, labels)))[-1]
    assert np.isclose(bars.y[0], frame["em_score"].drop(index=10).mean(), rtol=1e-6)
    assert np.isnan(bars.y[1])
    assert list(bars.text)[1] == "no score"
    assert list(bars.customdata) == [len(frame) - len(MISSING) - 1, 0, 1]


def test_a_missing_score_has_no_colour_of_the_scale() -> None:
    frame, clusterings = whole_study()
    figure = pca_plane(frame, clusterings[3])
    by_dimension, by_score = figure.data[: len(SIZES)], figure.data[len(SIZES) :]
    assert [len(trace.x) for trace in by_dimension] == list(SIZES.values())
    scored, unscored = by_score
    assert (len(scored.x), len(unscored.x)) == (len(frame) - len(MISSING), len(MISSING))
    assert not np.isnan(scored.marker.color).any()
    assert np.array_equal(scored.marker.color, frame["em_score"].dropna().to_numpy(dtype=np.float32))
    assert unscored.marker.line.color == "#9E9E9E"
    assert (scored.marker.cmin, scored.marker.cmax) == (0, 100)


def test_a_dimension_has_one_colour_in_all_figures() -> None:
    frame, clusterings = whole_study()
    colours: dict[str, set[str]] = {dimension: set() for dimension in SIZES}
    for figure in (
        pca_plane(frame, clusterings[3]),
        pca_space(frame, clusterings[3]),
        cluster_profile(frame, clusterings[3]),
    ):
        for dimension in SIZES:
            own = [trace for trace in figure.data if (trace.name or "").startswith(display_name(dimension))]
            assert len(own) == 1
            colours[dimension].add(own[0].marker.color)
    assert colours == {dimension: {colour} for dimension, colour in DIMENSION_COLOURS.items()}


def test_the_scree_plot_adds_up() -> None:
    _, clusterings = whole_study()
    ratios = clusterings[3]["explained_variance_ratio"]
    bars, line = traces(scree_plot(clusterings[3]))
    assert len(bars.y) == 50
    assert np.allclose(line.y, 100 * np.cumsum(ratios), rtol=1e-5)
    needed = next(count for count in range(1, 51) if ratios[:count].sum() >= 0.5)
    labels = [annotation.text for annotation in scree_plot(clusterings[3]).layout.annotations]
    assert f"50% with {needed} components" in labels
    assert not any(label.startswith("90%") for label in labels)  # 50 components do not reach it here


def test_silhouette_bars_are_the_values_sorted_within_clusters() -> None:
    _, clusterings = whole_study()
    for k, found in clusterings.items():
        bars = traces(silhouette_plot(found), "bar")
        assert len(bars) == k
        for trace in bars:
            own = found["silhouette_samples"][found["labels"] == int(trace.name.removeprefix("Cluster "))]
            assert np.array_equal(trace.x, np.sort(own))
        positions = np.concatenate([trace.y for trace in bars])
        assert np.diff(np.sort(positions)).min() >= 0.99  # no bar covers another


def test_the_overview_has_every_k_in_order() -> None:
    _, clusterings = whole_study()
    figure = cluster_overview([clusterings[50], clusterings[3], clusterings[7]])
    values = {trace.name: list(trace.y) for trace in figure.data}
    assert all(list(trace.x) == ["3", "7", "50"] for trace in figure.data)
    assert np.allclose(values["mean silhouette"], [clusterings[k]["silhouette"] for k in (3, 7, 50)])
    assert np.allclose(values["with facet"], [clusterings[k]["ami_facet"] for k in (3, 7, 50)])
    largest = [max(Counter(clusterings[k]["labels"].tolist()).values()) for k in (3, 7, 50)]
    assert values["largest cluster"] == largest


@pytest.mark.parametrize(("n", "k", "labels"), [(1, 3, [0]), (2, 50, [4, 9]), (3, 3, [0, 0, 0]), (4, 5, [0, 0, 1, 1])])
def test_few_rows_few_components_and_one_cluster_do_not_crash(n: int, k: int, labels: list[int]) -> None:
    frame, activations = study_frame()
    frame = frame.iloc[:n].assign(em_score=np.nan)
    found = clustering(frame, activations[:n], k, np.array(labels))
    figures = [
        cluster_map(frame, found), cluster_profile(frame, found), silhouette_plot(found), cluster_overview([found]),
        scree_plot(found), pca_plane(frame, found), pca_space(frame, found),
    ]  # fmt: skip
    assert all(figure.to_json() for figure in figures)
    assert [len(trace.x) for trace in traces(figures[0])] == [labels.count(label) for label in sorted(set(labels))]
    if len(set(labels)) == 1:
        assert "not defined" in silhouette_plot(found).to_json()


def test_rows_left_out_of_the_clustering_are_left_out_of_its_figures() -> None:
    frame, clusterings = whole_study()
    found = {name: np.copy(value) if isinstance(value, np.ndarray) else value for name, value in clusterings[3].items()}
    found["labels"][[0, 500]] = -1
    found["pca_scores"][[0, 500]] = np.nan
    found["silhouette_samples"][[0, 500]] = np.nan
    for figure in (cluster_map(frame, found), pca_space(frame, found), silhouette_plot(found)):
        assert sum(len(trace.x) for trace in traces(figure)) == len(frame) - 2
        assert not any(np.isnan(trace.x).any() for trace in traces(figure))
        assert "883 answers (2 left out)" in figure.layout.title.text
    assert sum(traces(cluster_profile(frame, found))[0].y) == len(frame) - 2
    sizes = np.bincount(found["labels"][found["labels"] >= 0])
    overview = {trace.name: list(trace.y) for trace in cluster_overview([found]).data}
    assert overview["smallest cluster"] == [sizes.min()]


def test_clusters_get_colours_of_their_own() -> None:
    assert len({cluster_style(cluster) for cluster in range(60)}) == 60
    assert len(set(CLUSTER_COLOURS)) == 15
    assert not set(CLUSTER_COLOURS) & set(DIMENSION_COLOURS.values())


@pytest.mark.parametrize(
    ("deficiency", "matrix"),
    [  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
        ("none", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("protan", [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
        ("deutan", [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
        ("tritan", [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
    ],
)  # fmt: skip
def test_dimensions_stay_apart_for_the_colour_blind(deficiency: str, matrix: list[list[float]]) -> None:
    lab = [_lab(np.array(matrix) @ _linear(colour)) for colour in DIMENSION_COLOURS.values()]
    distances = [np.linalg.norm(one - other) for index, one in enumerate(lab) for other in lab[:index]]
    assert min(distances) > 30, deficiency  # CIE76; 2.3 is just noticeable


def _linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089], 1e-6, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
