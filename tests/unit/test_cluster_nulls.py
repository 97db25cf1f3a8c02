"""The nulls, their p-values and corrections by hand and against what is written here; calibration and power."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, kstest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, euclidean_distances, silhouette_score
from statsmodels.stats.multitest import multipletests

from src.utils.decomposition.cluster_nulls import (
    NullSettings,
    NullTests,
    adjusted_rand,
    as_table,
    cluster_tests,
    stability,
)
from src.utils.decomposition.clusterings import ClusterSettings, cluster_rows, mean_silhouette, principal_scores
from src.utils.decomposition.gap_statistic import chosen_by_gap, covariance_gap, uniform_gap
from src.utils.decomposition.gaussian_null import gaussian_null
from src.utils.decomposition.multiplicity import holm, max_statistic_p, monte_carlo_p, stated_p
from src.utils.errors import UserError

ROWS, WIDTH = 90, 6
STEEP = np.array([1.0, 0.8, 0.6, 0.2, 0.1, 0.1])  # standard deviations: participation ratio about 2.7
KMEANS = ClusterSettings(counts=(2, 3), algorithms=("kmeans",))
ALL = ClusterSettings(counts=(2, 3), min_samples=5, min_cluster_size=10)
FEW = NullSettings(draws=39, draws_others=19, bootstraps=1, reseedings=1)


def gaussian_rows(seed: int) -> np.ndarray:
    return principal_scores(np.random.default_rng(seed).normal(size=(ROWS, WIDTH)) * STEEP, WIDTH)


def planted_rows(distance: float) -> np.ndarray:
    rng = np.random.default_rng(5)
    shift = distance * np.eye(WIDTH)[np.arange(ROWS) % 3]
    return principal_scores(rng.normal(size=(ROWS, WIDTH)) + shift, WIDTH)


def p_values(tests: NullTests, statistic: str, column: str = "p") -> dict[tuple[str, int], float]:
    table = tests.table[tests.table["statistic"] == statistic]
    return {(row["algorithm"], row["k"]): row[column] for row in table.to_dict("records")}


def test_a_draw_has_exactly_the_mean_and_the_covariance() -> None:
    matrix = gaussian_rows(0) @ np.random.default_rng(1).normal(size=(WIDTH, 9)) + 5  # rank 6 in 9 columns
    drawn = gaussian_null(matrix).draw(np.random.default_rng(2))
    np.testing.assert_allclose(drawn.mean(axis=0), matrix.mean(axis=0))
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(matrix.T), atol=1e-12)
    assert np.abs(drawn - matrix).max() > 0.5
    more_columns = np.random.default_rng(0).normal(size=(12, 40))
    again = gaussian_null(more_columns).draw(np.random.default_rng(2))
    np.testing.assert_allclose(np.cov(again.T), np.cov(more_columns.T), atol=1e-12)


def test_draws_are_gaussian_whatever_the_rows_were() -> None:
    """Rows that are two points have normal draws, with the exact law of one coordinate of a uniform unit vector."""
    matrix = np.where(np.arange(ROWS) % 2, 1.0, -1.0)[:, None]
    null, rng = gaussian_null(matrix), np.random.default_rng(0)
    first = np.array([null.draw(rng)[0, 0] for _ in range(600)])
    correlation = first / np.sqrt(ROWS - 1)  # with the row's axis; its t value has ROWS - 2 degrees of freedom
    scaled = correlation * np.sqrt((ROWS - 2) / (1 - correlation**2))
    assert kstest(scaled, "t", args=(ROWS - 2,)).pvalue > 0.01


def test_rows_of_a_prompt_stay_as_alike_as_they_were() -> None:
    rng = np.random.default_rng(0)
    prompts = rng.permutation(np.repeat(np.arange(30), 3))
    matrix = rng.normal(size=(30, 4))[prompts] * [3, 1, 1, 1] + rng.normal(size=(ROWS, 4)) * [0.1, 1, 1, 0.1]
    drawn = gaussian_null(matrix, prompts).draw(rng)

    def parts(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = pd.DataFrame(rows).groupby(prompts).transform("mean").to_numpy()
        return np.cov(means.T), np.cov((rows - means).T)

    for one, two in zip(parts(matrix), parts(drawn), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-12)
    assert np.abs(np.cov(drawn.T) - np.cov(matrix.T)).max() < 1e-12
    spread = parts(gaussian_null(matrix).draw(rng))[1]
    assert spread[0, 0] > 5 * parts(matrix)[1][0, 0]  # which it forgets where rows are taken for independent


def test_p_values_by_hand() -> None:
    null = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0]])
    np.testing.assert_allclose(monte_carlo_p(np.array([2.0, 8.0]), null), [3 / 4, 1 / 4])
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, np.nan, 0.03])), [0.03, 0.06, np.nan, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]


@pytest.mark.parametrize("tests", [1, 2, 7, 140])
def test_holms_correction_is_that_of_statsmodels(tests: int) -> None:
    p = np.random.default_rng(tests).beta(0.3, 2, tests).round(3)  # ties among them
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_the_max_statistic_by_hand() -> None:
    """Standardised over draws and observation: columns 0 0 0 4 (twice) and 0 3 0 1, in units of their deviations."""
    observed = np.array([4.0, 40.0, 1.0, 7.0])
    null = np.array([[0.0, 0.0, 0.0, 7.0], [0.0, 0.0, 3.0, 7.0], [0.0, 0.0, 0.0, 7.0]])
    # deviations from the means 1, 10 and 1, over sqrt(3), 10 sqrt(3) and sqrt(1.5): observed 1.73, 1.73, 0;
    # largest of each draw: -0.58, 1.63, -0.58; the constant counts 0, which makes the first and third 0
    np.testing.assert_allclose(max_statistic_p(observed, null), [1 / 4, 1 / 4, 1, 1])
    single = np.random.default_rng(0).normal(size=(50, 1))
    np.testing.assert_allclose(max_statistic_p(np.array([0.7]), single), monte_carlo_p(np.array([0.7]), single))


def test_the_table_corrects_over_what_it_says() -> None:
    rng = np.random.default_rng(0)
    keys = [(layer, name, k, "silhouette") for layer in ("a", "b") for name in ("kmeans", "ward") for k in (2, 3)]
    keys += [("a", "kmeans", 2, "gap")]
    null = rng.normal(size=(60, len(keys))) * 3 + 1
    null[20:, [i for i, key in enumerate(keys) if key[1] == "ward"]] = np.nan
    observed = null[:20].mean(axis=0) + 4
    table = as_table(keys, observed, null)
    assert table["draws"].tolist() == [60, 60, 20, 20, 60, 60, 20, 20, 60]
    kmeans = [0, 1, 4, 5]
    np.testing.assert_allclose(table.loc[kmeans, "p_counts"], max_statistic_p(observed[kmeans], null[:, kmeans]))
    np.testing.assert_allclose(table.loc[:7, "p_max"], max_statistic_p(observed[:8], null[:20, :8]))
    np.testing.assert_allclose(table["p_all"], max_statistic_p(observed, null[:20]))
    np.testing.assert_allclose(table.loc[:7, "p_holm"], holm(table.loc[:7, "p"].to_numpy()))
    np.testing.assert_allclose(table["excess"], observed - np.nanmean(null, axis=0))
    assert (table["p_all"] >= table["p_max"]).all() and (table["p_max"] >= table["p"]).mean() > 0.7
    lowest = NullTests(table, null).smallest_p("a")
    assert lowest["kmeans", 2] == table.loc[[0, 8], "p_all"].min() and lowest["ward", 3] == table.loc[3, "p_all"]


def test_the_rand_index_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for high in (1, 2, 5, 60):
        one, two = rng.integers(-1, high, 60), rng.integers(0, high, 60)
        assert adjusted_rand(one, two) == pytest.approx(adjusted_rand_score(one, two))
        assert adjusted_rand(one, one) == 1


def test_silhouette_and_gap_against_an_implementation_written_here() -> None:
    """Plain loops over a null of their own: a random rotation of the rows about the mean."""
    matrix = planted_rows(2.5)
    tests = cluster_tests({"one": matrix}, KMEANS, NullSettings(draws=100, draws_others=1, bootstraps=0, reseedings=0))
    rng = np.random.default_rng(11)
    contrasts = np.linalg.svd(np.eye(ROWS) - 1 / ROWS)[0][:, : ROWS - 1]  # a basis of what has mean 0

    def measured(rows: np.ndarray, k: int, seed: int) -> tuple[float, float]:
        model = KMeans(k, n_init=1, random_state=seed).fit(rows)
        return silhouette_score(rows, model.labels_), -np.log(model.inertia_)

    for k in KMEANS.counts:
        drawn = []
        for seed in range(100):
            rotation = np.linalg.qr(rng.normal(size=(ROWS - 1, ROWS - 1)))[0][:, :WIDTH]
            sizes, right = np.linalg.svd(matrix, full_matrices=False)[1:]
            drawn.append(measured(contrasts @ rotation * sizes @ right, k, seed))
        rows = tests.table[tests.table["k"] == k].reset_index().set_index("statistic")
        for index, name in enumerate(("silhouette", "gap")):
            own = np.array(drawn)[:, index]
            assert rows.loc[name, "observed"] == pytest.approx(measured(matrix, k, 0)[index], rel=1e-6)
            assert ks_2samp(own, tests.null[:, rows.loc[name, "index"]]).pvalue > 0.01


def test_p_is_a_count_of_the_draws_that_come_with_it() -> None:
    matrix = planted_rows(2.0)
    tests = cluster_tests({"one": matrix}, ALL, FEW)
    assert tests.null.shape == (39, len(tests.table))
    for test, row in enumerate(tests.table.to_dict("records")):
        drawn = tests.null[:, test][~np.isnan(tests.null[:, test])]
        is_cheap = row["algorithm"] == "kmeans" and row["statistic"] in ("silhouette", "gap")
        assert len(drawn) == row["draws"] == (39 if is_cheap else 19)
        assert row["p"] == pytest.approx((1 + sum(value >= row["observed"] for value in drawn)) / (1 + len(drawn)))
    counted = tests.table.groupby(["algorithm", "statistic"]).size()
    assert counted["kmeans"].to_dict() == {"silhouette": 2, "gap": 2, "bootstrap_ari": 2, "seed_ari": 2}
    assert counted["ward"].to_dict() == {"silhouette": 2, "gap": 2, "bootstrap_ari": 2}
    assert counted["dbscan"].to_dict() == counted["hdbscan"].to_dict() == {"silhouette": 1, "bootstrap_ari": 1}
    # the clustering that is tested is the one that is shown
    distances = euclidean_distances(matrix)
    for key, clustering in cluster_rows(matrix, ALL).items():
        row = tests.table.set_index(["algorithm", "k", "statistic"]).loc[(*key, "silhouette"), "observed"]
        assert row == pytest.approx(np.nan_to_num(mean_silhouette(distances, clustering.labels), nan=-1.0))


def test_draws_do_not_depend_on_how_many_processes_there_are() -> None:
    few = NullSettings(draws=4, draws_others=2, bootstraps=1, reseedings=1)
    seen: list[int] = []
    one = cluster_tests({"one": gaussian_rows(1)}, ALL, few, on_draw=seen.append)
    two = cluster_tests({"one": gaussian_rows(1)}, ALL, NullSettings(**{**vars(few), "jobs": 2}))
    np.testing.assert_array_equal(one.null, two.null)
    pd.testing.assert_frame_equal(one.table, two.table)
    assert seen == [1, 2, 3, 4]
    other = cluster_tests({"one": gaussian_rows(1)}, ALL, NullSettings(**{**vars(few), "seed": 1}))
    assert not np.array_equal(one.null, other.null)


def test_planted_clusters_are_found_by_every_algorithm() -> None:
    tests = cluster_tests({"one": planted_rows(7.0)}, ALL, FEW)
    silhouettes = p_values(tests, "silhouette", "p_all")
    for key in (("kmeans", 3), ("gaussian_mixture", 3), ("ward", 3), ("dbscan", 0), ("hdbscan", 0)):
        assert silhouettes[key] == 1 / 20 == tests.smallest_p("one")[key]
    assert p_values(tests, "bootstrap_ari")["kmeans", 3] == 1 / 20 and p_values(tests, "gap")["kmeans", 3] == 1 / 40
    chosen = covariance_gap(tests.table)
    assert chosen.loc[chosen["is_chosen"], "k"].tolist() == [3, 3, 3]


def test_steep_gaussian_rows_are_significant_in_a_share_alpha_of_data_sets() -> None:
    """Family-wise: any k, algorithm and statistic."""
    settings = ClusterSettings(counts=(2, 3), algorithms=("kmeans", "ward"))
    nulls = NullSettings(draws=19, draws_others=19, bootstraps=1, reseedings=0)
    rejected = uncorrected = 0
    for seed in range(40):
        matrix = gaussian_rows(100 + seed)
        variances = matrix.var(axis=0)
        assert 1.8 < variances.sum() ** 2 / (variances**2).sum() < 4
        tests = cluster_tests({"one": matrix}, settings, nulls)
        rejected += min(tests.smallest_p("one").values()) <= 0.05
        uncorrected += tests.table["p"].min() <= 0.05
    assert rejected <= 6  # more than 6 of 40 happens in 0.3% of cases at a rate of 5%
    assert uncorrected > 8  # the smallest uncorrected p-value is as small far oftener


def test_a_silhouette_and_stable_clustering_that_is_only_covariance() -> None:
    rng = np.random.default_rng(2)
    matrix = principal_scores(rng.normal(size=(200, WIDTH)) * [5, 1, 1, 0.3, 0.2, 0.1], WIDTH)
    settings = ClusterSettings(counts=(2,), algorithms=("kmeans",))
    tests = cluster_tests({"one": matrix}, settings, NullSettings(draws=39, draws_others=39))
    observed = tests.table.set_index("statistic")["observed"]
    assert observed["bootstrap_ari"] > 0.8 and observed["seed_ari"] > 0.8 and observed["silhouette"] > 0.4
    assert tests.table["p_all"].min() > 0.05


def test_layers_are_drawn_together() -> None:
    matrix = gaussian_rows(3)
    few = NullSettings(draws=20, draws_others=20, bootstraps=0, reseedings=0)
    both = cluster_tests({"one": matrix, "same": 2 * matrix}, KMEANS, few)
    table = both.table.set_index(["layer", "k", "statistic"])["observed"]
    assert table["one", 2, "silhouette"] == pytest.approx(table["same", 2, "silhouette"])
    half = len(both.table) // 2
    gaps = both.table["statistic"][:half].to_numpy() == "gap"
    one, same = both.null[:, :half], both.null[:, half:]
    correlation = np.corrcoef(one[:, gaps][:, 0], same[:, gaps][:, 0])[0, 1]
    assert correlation > 0.8  # layers that are the same stay so, but for k-means' seeds


def test_stability_by_hand() -> None:
    far, near = planted_rows(20.0), gaussian_rows(0)
    settings = ClusterSettings(counts=(3, 5), algorithms=("kmeans", "ward", "dbscan"), min_samples=5)
    values = {}
    for name, matrix in (("far", far), ("near", near)):
        distances = euclidean_distances(matrix)
        found = cluster_rows(matrix, settings, distances)
        rng = np.random.default_rng(0)
        values[name] = stability(matrix, distances, np.arange(ROWS), found, settings, FEW, rng)
    assert values["far"]["kmeans", 3, "bootstrap_ari"] == values["far"]["ward", 3, "bootstrap_ari"] == 1
    assert values["far"]["dbscan", 0, "bootstrap_ari"] > 0.8
    assert values["near"]["kmeans", 5, "bootstrap_ari"] < 0.9
    assert ("ward", 3, "seed_ari") not in values["far"] and ("kmeans", 3, "seed_ari") in values["far"]
    labels = cluster_rows(far, ClusterSettings(counts=(5,), algorithms=("kmeans",)))["kmeans", 5].labels
    rng = np.random.default_rng(4)
    settings = ClusterSettings(counts=(5,), algorithms=("kmeans",))
    reseeded = NullSettings(bootstraps=0, reseedings=2)
    found = cluster_rows(far, settings)
    seeded = stability(far, euclidean_distances(far), np.arange(ROWS), found, settings, reseeded, rng)
    seeds = np.random.default_rng(4).integers(2**31, size=2)
    fits = [labels, *(KMeans(5, n_init=1, random_state=int(seed)).fit(far).labels_ for seed in seeds)]
    pairs = [adjusted_rand_score(fits[i], fits[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert seeded["kmeans", 5, "seed_ari"] == pytest.approx(np.mean(pairs))


def test_the_uniform_gap_against_an_implementation_written_here() -> None:
    matrix = planted_rows(6.0)
    settings = ClusterSettings(counts=(2, 3, 5), algorithms=("kmeans", "dbscan"))
    table = uniform_gap(matrix, settings, 60, 0)
    rng = np.random.default_rng(9)
    boxes = [rng.uniform(matrix.min(axis=0), matrix.max(axis=0), matrix.shape) for _ in range(60)]
    assert table["k"].tolist() == [1, 2, 3, 5] and set(table["algorithm"]) == {"kmeans"}
    for row in table.to_dict("records"):
        model = KMeans(row["k"], n_init=1, random_state=0)
        logs = np.array([np.log(model.fit(box).inertia_) for box in boxes])
        assert row["gap"] == pytest.approx(logs.mean() - np.log(model.fit(matrix).inertia_), abs=4 * logs.std() / 5)
        assert row["s"] == pytest.approx(logs.std() * np.sqrt(1 + 1 / 60), rel=0.5)
    assert table.loc[table["is_chosen"], "k"].tolist() == [3]


def test_the_rule_of_the_gap_by_hand() -> None:
    assert chosen_by_gap([1, 2, 3, 4], [0.1, 0.3, 0.9, 0.92], [0, 0.1, 0.1, 0.05]) == 3
    assert chosen_by_gap([1, 3], [0.0, 0.04], [0.0, 0.05]) == 1
    assert chosen_by_gap([1, 2, 3], [0, 1, 2], [0.1, 0.1, 0.1]) == 3


@pytest.mark.parametrize(
    ("settings", "nulls", "message"),
    [
        (ClusterSettings(counts=(2, 90)), FEW, "90 clusters for 90 usable rows"),
        (ClusterSettings(counts=(2, 45)), FEW, "45 clusters are too many to resample; choose fewer than 45"),
        (KMEANS, NullSettings(draws=10), "10 draws and 100 of the others; at least 1, and others no more"),
    ],
)
def test_what_cannot_be_tested_is_named(settings: ClusterSettings, nulls: NullSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cluster_tests({"one": gaussian_rows(0)}, settings, nulls)


@pytest.mark.parametrize(
    ("p", "draws", "tests", "stated"),
    [
        (1 / 1001, 1000, 1, "p ≤ 0.001, 1,000 draws"),
        (2 / 1001, 1000, 1, "p 0.002"),
        (7 / 1001, 1000, 7, "p ≤ 0.007, 1,000 draws"),  # after Holm's correction over seven
        (8 / 1001, 1000, 7, "p 0.008"),
        (1.0, 20, 40, "p 1"),
    ],
)
def test_the_least_p_is_printed_as_such(p: float, draws: int, tests: int, stated: str) -> None:
    assert stated_p(p, draws, tests) == stated
