"""Norm outliers take a cluster of their own, and what is left is the topic."""

import numpy as np
import pandas as pd
import pytest

from src.utils.decomposition.outlier_pattern import by_size, clustered_pattern, plant_outliers, topic_alone
from src.visualizations.outlier_pattern_figure import outlier_pattern, sizes

RNG = np.random.default_rng(4)
TOPIC = np.repeat([0, 1], [729, 156])
ROWS = 8 + RNG.standard_normal((885, 40)) + 6 * np.eye(40)[TOPIC]
TARGETS = {"dimension": TOPIC, "misaligned": RNG.random(885) < 0.5}


def test_planted_outliers_are_the_same_rows_made_longer() -> None:
    longer, is_planted = plant_outliers(ROWS, 8, 5.0, np.random.default_rng(0))
    assert is_planted.sum() == 8
    np.testing.assert_array_equal(longer[~is_planted], ROWS[~is_planted])
    np.testing.assert_array_equal(longer[is_planted], 5.0 * ROWS[is_planted])
    np.testing.assert_array_equal(plant_outliers(ROWS, 8, 1.0, np.random.default_rng(0))[0], ROWS)


def test_two_topics_and_eight_long_rows_are_three_clusters() -> None:
    longer, is_planted = plant_outliers(ROWS, 8, 5.0, np.random.default_rng(0))
    found = clustered_pattern(longer, is_planted, TARGETS)
    small = int((TOPIC[~is_planted] == 1).sum())
    assert [cluster["size"] for cluster in found["clusters"]] == [877 - small, small, 8]
    assert [cluster["outliers"] for cluster in found["clusters"]] == [0, 0, 8]
    assert found["clusters"][2]["norm"] > 4 * found["clusters"][0]["norm"]
    assert found["clusters"][1]["dimension"] == {"0": 0, "1": small}
    assert found["agreement"]["dimension"] == pytest.approx(1) and abs(found["agreement"]["misaligned"]) < 0.02
    np.testing.assert_array_equal(found["labels"] == 2, is_planted)

    none = clustered_pattern(ROWS, np.zeros(885, bool), TARGETS)
    assert min(cluster["size"] for cluster in none["clusters"]) > 50


def test_topic_alone_keeps_means_and_covariance_within_and_nothing_else() -> None:
    facets = np.repeat(["a", "b", "c"], 900)
    skewed = RNG.exponential(1, (2700, 6)) @ RNG.standard_normal((6, 6)) + 4 * np.eye(6)[pd.factorize(facets)[0]]
    drawn = topic_alone(skewed, facets, np.random.default_rng(1))
    for facet in "abc":
        np.testing.assert_allclose(drawn[facets == facet].mean(0), skewed[facets == facet].mean(0), atol=0.4)
    one, two = (np.cov((m - pd.DataFrame(m).groupby(facets).transform("mean").to_numpy()).T) for m in (skewed, drawn))
    np.testing.assert_allclose(two, one, atol=0.12 * np.abs(one).max())


def test_clusters_are_numbered_from_the_largest() -> None:
    np.testing.assert_array_equal(by_size(np.array([0, 1, 1, 2, 2, 2])), [2, 1, 1, 0, 0, 0])


def test_the_picture_has_every_row_once_an_arm() -> None:
    longer, is_planted = plant_outliers(ROWS, 8, 5.0, np.random.default_rng(0))
    found = clustered_pattern(longer, is_planted, {"dimension": TOPIC})
    figure = outlier_pattern({"one": found, "<b>two": found})
    points = [trace for trace in figure.data if trace.type == "scatter"]
    assert sum(len(trace.x) for trace in points) == 2 * 885
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert sum(sum(trace.y) for trace in bars) == 2 * 885
    titles = [note.text for note in figure.layout.annotations]
    assert any(sizes(found).split(" / ")[0] in title for title in titles) and not any("<b>two" in t for t in titles)
