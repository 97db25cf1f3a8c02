"""Figures of the geometry show exactly what its record holds, and stay readable where a part of it is missing."""

import copy
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from scipy.cluster.hierarchy import leaves_list

from src.utils.decomposition.geometry_report import smallest_found
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.component_figures import scree_plot, tsne_plane
from src.visualizations.dendrogram_figure import ward_dendrogram
from src.visualizations.geometry_figures import KIND_COLOURS, cluster_explanations, cluster_tests
from src.visualizations.layer_statistics import layer_statistics
from src.visualizations.palette import DIMENSION_COLOURS, display_name
from src.visualizations.power_figures import power_curve
from src.visualizations.probe_figures import PREDICTOR_NAMES, factorisations, probe_scores
from src.visualizations.study_pages import study_pages
from tests.study_frame import geometry_record, planted_activations, rates_frame, whole_study


def record() -> dict[str, Any]:
    """A record to be changed."""
    return copy.deepcopy(geometry_record())


def drawn(values: Any) -> np.ndarray:
    return np.array([value for value in values if value is not None], dtype=float)


def texts(figure: go.Figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def test_every_test_is_drawn_beside_its_null() -> None:
    tests = [row for row in geometry_record()["clusters"]["tests"] if row["statistic"] != "gap"]
    defined = [row for row in tests if row["statistic"] != "silhouette" or row["observed"] > -1]
    figure = cluster_tests(geometry_record())
    for symbol, chosen in (
        ("circle", [row for row in defined if row["p_max"] < 0.05]),
        ("circle-open", [row for row in defined if row["p_max"] >= 0.05]),
    ):
        points = [trace for trace in figure.data if trace.type == "scatter" and trace.marker.symbol == symbol]
        values = np.concatenate([drawn(trace.y) for trace in points])
        np.testing.assert_allclose(np.sort(values), np.sort([row["observed"] for row in chosen]), rtol=1e-5)
        p_values = sorted(cell.split("<br>")[1] for trace in points for cell in trace.text or ())
        shared = dict.fromkeys(("silhouette", "bootstrap_ari", "seed_ari"), 20)
        assert p_values == sorted("max-T: " + stated_p(row["p_max"], shared[row["statistic"]]) for row in chosen)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    low = np.concatenate([np.array(trace.base, dtype=float) for trace in bars])
    high = low + np.concatenate([trace.y for trace in bars])
    np.testing.assert_allclose(np.sort(low), np.sort([row["null_low"] for row in tests]), atol=1e-6)
    np.testing.assert_allclose(np.sort(high), np.sort([row["null_high"] for row in tests]), atol=1e-6)
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert len(shown) == len(set(shown)) == 3  # also where no marker is of one kind


def test_stability_over_seeds_is_blank_where_no_seed_is_used() -> None:
    figure = cluster_tests(geometry_record())
    assert texts(figure).count("the same<br>for every seed") == 2  # Ward, and the density algorithms
    changed = record()
    changed["clusters"]["tests"] = [row for row in changed["clusters"]["tests"] if row["statistic"] != "seed_ari"]
    assert "the same<br>for every seed" not in texts(cluster_tests(changed))


def test_the_power_of_each_test_is_drawn_with_its_intervals() -> None:
    power = geometry_record()["power"]
    figure = power_curve(geometry_record())
    for axis, name in (("x", "subspaces"), ("x2", "clusters")):
        lines = {trace.name: trace for trace in figure.data if trace.xaxis == axis}
        labels = {30: "30° apart", 90: "90° apart", None: "nothing planted (false positives)"}
        assert set(lines) == set(labels.values())
        for angle, label in labels.items():
            trace = lines[label]
            rows = [row for row in power["curve"] if (row["detector"], row["angle"]) == (name, angle)]
            np.testing.assert_allclose(trace.y, [row["power"] for row in rows], rtol=1e-5)
            np.testing.assert_allclose(trace.x, [row["snr"] for row in rows], atol=0.2)
            low, high = trace.y - trace.error_y.arrayminus, trace.y + trace.error_y.array
            np.testing.assert_allclose(low, [row["low"] for row in rows], atol=1e-5)
            np.testing.assert_allclose(high, [row["high"] for row in rows], atol=1e-5)
    assert [shape.y0 for shape in figure.layout.shapes].count(0.9) == 2
    shown = [text.replace("<br>", " ") for text in texts(figure)]
    assert any(text.endswith(smallest_found(power, "subspaces")) and "here: p 0." in text for text in shown)
    title = cluster_tests(geometry_record()).layout.title.text.replace("<br>", " ")
    assert title.endswith(f"by a test of clusters, {smallest_found(power, 'clusters')}")

    changed = record()
    changed["power"]["clusters"] = {"reason": "clusters: not planted"}
    changed["power"]["curve"] = [row for row in changed["power"]["curve"] if row["detector"] == "subspaces"]
    assert "clusters: not planted" in texts(power_curve(changed))


def test_a_clustering_without_two_clusters_has_no_silhouette_to_draw() -> None:
    changed = record()
    for row in changed["clusters"]["tests"]:
        if row["algorithm"] == "dbscan" and row["statistic"] == "silhouette":
            row |= {"observed": -1.0, "null_low": -1.0, "null_high": -1.0}
    figure = cluster_tests(changed)
    assert "data and null:<br>no two<br>clusters" in texts(figure)
    assert not any((drawn(trace.y) == -1).any() for trace in figure.data if trace.type == "scatter")
    assert all(axis.range[0] > -0.9 for axis in (figure.layout.yaxis, figure.layout.yaxis5))


def test_every_clustering_has_its_kind_in_words_and_colour() -> None:
    explanations = geometry_record()["clusters"]["explanations"]
    figure = cluster_explanations(geometry_record())
    (heatmap,) = figure.data
    kinds = list(KIND_COLOURS)
    codes = np.asarray(heatmap.z, dtype=float)
    assert np.isfinite(codes).sum() == len(explanations) == len(texts(figure))
    for row in explanations:
        name = {"kmeans": "k-means", "ward": "Ward", "gaussian_mixture": "Gaussian mixture"}.get(
            row["algorithm"], row["algorithm"].upper()
        )
        place = heatmap.y.index(name), heatmap.x.index(f"k = {row['k']}" if row["k"] else "own k")
        assert codes[place] == kinds.index(row["kind"])
        cell = next(one.text for one in figure.layout.annotations if (one.y, one.x) == (name, heatmap.x[place[1]]))
        assert row["kind"] in cell.replace("<br>", " ") and f"facet {row['numbers']['ami_facet'] + 0:.2f}" in cell
        assert row["sentence"] in heatmap.text[place[0]][place[1]].replace("<br>", " ")
    colours = dict(heatmap.colorscale)
    assert len(kinds) == len(set(KIND_COLOURS.values())) and set(colours.values()) == set(KIND_COLOURS.values())
    assert not set(KIND_COLOURS.values()) & set(DIMENSION_COLOURS.values())


def test_the_tree_has_its_heights_and_what_leaves_hold() -> None:
    tree = geometry_record()["tree"]
    figure = ward_dendrogram(geometry_record())
    lines = figure.data[0]
    tops = np.unique(drawn(lines.y))
    np.testing.assert_allclose(tops[tops > 0], np.unique([merge[2] for merge in tree["merges"]]))
    order = leaves_list(np.array(tree["merges"]))
    for trace in figure.data[1:]:
        dimension = next(name for name in DIMENSION_COLOURS if display_name(name) == trace.name)
        held = [tree["leaves"][leaf]["counts"][dimension] / tree["leaves"][leaf]["rows"] for leaf in order]
        np.testing.assert_allclose(trace.y, 100 * np.array(held), rtol=1e-5)
        assert trace.marker.color == DIMENSION_COLOURS[dimension]
    assert [int(text) for text in figure.layout.xaxis2.ticktext] == [tree["leaves"][leaf]["rows"] for leaf in order]


def test_every_layer_has_its_rank_and_its_standard_scores() -> None:
    layers = geometry_record()["layers"]
    rank, clusters = layer_statistics(geometry_record()).data
    names = [text.replace("<br>", " ") for text in clusters.y]
    assert names == layers["names"] == [text.replace("<br>", " ") for text in rank.y]
    for line, name in enumerate(layers["names"]):
        found = layers["rank"][name]
        values = [found["parallel_analysis"]["retained"], found["participation"]["estimate"]]
        np.testing.assert_allclose(rank.customdata[line][:2], values, rtol=1e-5)
    at = {column: place for place, column in enumerate(zip(*clusters.x, strict=True))}
    titles = {"silhouette": "k-means: silhouette", "gap": "k-means: gap against the covariance"}
    assert len(layers["tests"]) == np.size(clusters.z)
    for row in layers["tests"]:
        place = names.index(row["layer"]), at[titles[row["statistic"]], str(row["k"])]
        score = (row["observed"] - row["null_mean"]) / row["null_sd"]
        assert clusters.z[place[0]][place[1]] == pytest.approx(score, rel=1e-5)
        assert clusters.text[place[0]][place[1]].endswith("*") == (row["p_max"] < 0.05)


def test_probes_show_estimates_intervals_and_transfer() -> None:
    probes = geometry_record()["probes"]
    figure = probe_scores(geometry_record())
    points = [trace for trace in figure.data if trace.type == "scatter"]
    for axis, target in (("x", "dimension"), ("x2", "misaligned")):
        of_target = {trace.name: trace for trace in points if trace.xaxis == axis}
        rows = [row for row in probes[target]["table"] if row["measure"] == "auroc"]
        assert {row["predictor"] for row in rows} == set(PREDICTOR_NAMES)
        assert set(PREDICTOR_NAMES) - set(of_target) == {"prompt_identity"}  # one answer a prompt
        for row in rows[:-1]:
            trace = of_target[row["predictor"]]
            ends = (trace.x[0] - trace.error_x.arrayminus[0], trace.x[0], trace.x[0] + trace.error_x.array[0])
            assert ends == pytest.approx((row["low"], row["estimate"], row["high"]), abs=1e-5)
    assert texts(figure).count("undefined: one answer a prompt") == 2
    (heatmap,) = [trace for trace in figure.data if trace.type == "heatmap"]

    def probes_of(name: str) -> str:
        own = next(row for row in probes["transfer"]["table"] if row["train"] == row["test"] == name)
        return f"{own['misaligned']} / {own['aligned']}"

    assert sum(text.endswith("(n = 120)") for text in texts(figure)) == 2
    for row in probes["transfer"]["table"]:
        train = f"{display_name(row['train'])} {probes_of(row['train'])}"
        place = [[name.replace("<br>", " ") for name in heatmap.y].index(train)]
        place.append([name.replace("<br>", " ") for name in heatmap.x].index(display_name(row["test"])))
        assert heatmap.z[place[0]][place[1]] == pytest.approx(row["auroc"], abs=1e-5)


def test_what_was_not_probed_says_why() -> None:
    changed = record()
    changed["probes"]["misaligned"] = {"reason": "target: all rows are aligned <b>"}
    changed["probes"]["transfer"]["table"][1] |= {"auroc": None, "low": None, "high": None, "reason": "too few"}
    figure = probe_scores(changed)
    assert any(
        text.startswith("not probed:<br>target: all rows are aligned") and "&lt;b&gt;" in text for text in texts(figure)
    )
    assert texts(figure).count("under<br>10") == 1
    changed["probes"]["transfer"] = {"reason": "there are no rows"}
    assert "not probed:<br>there are no rows" in texts(probe_scores(changed))


def test_factorisations_show_their_means() -> None:
    table = geometry_record()["factorisations"]["table"]
    found = {(row["method"], row["measure"]): row["mean"] for row in table}
    methods = ("pca", "ica", "nmf", "dictionary")
    held_out, null, stability = factorisations(geometry_record()).data
    np.testing.assert_allclose(held_out.x, [100 * found[method, "held_out"] for method in methods], rtol=1e-5)
    np.testing.assert_allclose(null.x, [found[method, "stability_null"] for method in methods], rtol=1e-5)
    np.testing.assert_allclose(stability.x, [found[method, "stability"] for method in methods], rtol=1e-5)


def test_the_scree_plot_has_the_band_of_parallel_analysis() -> None:
    _, clusterings = whole_study()
    parallel = geometry_record()["rank"]["parallel_analysis"]
    *_, mean, limit, values = scree_plot(clusterings[3], parallel).data
    for trace, name in ((mean, "null_mean"), (limit, "limit"), (values, "eigenvalues")):
        np.testing.assert_allclose(trace.y, parallel[name], rtol=1e-5)
    assert list(values.marker.symbol).count("circle") == parallel["retained"] and limit.fill == "tonexty"


def test_the_map_has_every_answer_where_t_sne_put_it_with_its_text() -> None:
    frame, _ = planted_activations()
    tsne = geometry_record()["tsne"]
    figure = tsne_plane(frame.sample(frac=1, random_state=1), geometry_record())
    for axis in ("x", "x2"):
        panel = [trace for trace in figure.data if trace.xaxis == axis]
        np.testing.assert_allclose(np.sort(np.concatenate([t.x for t in panel])), np.sort(tsne["x"]), rtol=1e-5)
    place = {
        round(float(x), 3): text
        for t in figure.data
        if t.xaxis == "x"
        for x, text in zip(t.x, t.hovertext, strict=True)
    }
    for prompt_id, x in zip(tsne["prompt_ids"][:20], tsne["x"][:20], strict=True):
        assert place[round(float(np.float32(x)), 3)].startswith(f"{prompt_id} ")


def test_pages_show_what_the_geometry_has() -> None:
    frame, clusterings = whole_study()

    def pages(geometry: dict[str, Any] | None) -> list[str]:
        made = study_pages(frame, rates_frame(), [clusterings[3]], [], "cmd", {}, 70, geometry=geometry)
        return [page.file_name for page in made]

    changed = record()  # its answers are among those of the study
    added = [name for name in pages(changed) if name not in pages(None)]
    assert added == ["tsne_2d.html", "cluster_tests.html", "cluster_explanations.html", "power_curve.html",
                     "dendrogram.html", "layer_statistics.html", "factorisations.html", "probes.html"]  # fmt: skip
    for part in ("clusters", "power", "layers", "factorisations", "probes", "tree", "tsne"):
        changed[part] = {"reason": "too few rows"}
    changed["rank"]["parallel_analysis"] = {"reason": "too few rows"}
    assert pages(changed) == pages(None)
