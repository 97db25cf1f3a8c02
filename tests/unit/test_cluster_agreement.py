"""Agreement against scikit-learn and brute-force permutation; planted explanations found and told apart."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from src.utils.decomposition.cluster_agreement import (
    Explanation,
    agreement,
    agreements,
    exchange_within,
    explain_clusters,
    length_quintiles,
    norm_outliers,
)
from src.utils.errors import UserError

ROWS = 240
DIMENSION = np.repeat(["moral", "money", "politics", "technology"], 60)
FACET = np.array([f"{name}_{i % 3}" for i, name in enumerate(DIMENSION)])
PROMPTS = np.array([f"q{i:03d}" for i in range(ROWS)])
KEY = ("kmeans", 4)


def orders(count: int = 100, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(ROWS) for _ in range(count)])


def noisy(truth: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coded = np.unique(truth, return_inverse=True)[1]
    return np.where(rng.random(len(coded)) < share, rng.integers(0, coded.max() + 1, len(coded)), coded)


@pytest.mark.parametrize("target", [DIMENSION, FACET, np.random.default_rng(5).integers(0, 3, ROWS)])
def test_indices_and_p_values_against_brute_force(target: np.ndarray) -> None:
    labels = noisy(DIMENSION, 0.9)
    permutations = orders()
    found = agreement(labels, target, permutations)
    assert found.ami == pytest.approx(adjusted_mutual_info_score(target, labels))
    assert found.ari == pytest.approx(adjusted_rand_score(target, labels))
    for index, p in ((adjusted_mutual_info_score, found.p_ami), (adjusted_rand_score, found.p_ari)):
        drawn = np.array([index(target, labels[order]) for order in permutations])
        assert p == pytest.approx((1 + (drawn >= index(target, labels) - 1e-9).sum()) / 101)


def test_within_strata_against_brute_force() -> None:
    labels = noisy(FACET, 0.7)
    rng = np.random.default_rng(2)
    permutations = np.stack([exchange_within(PROMPTS, DIMENSION, rng) for _ in range(100)])

    def by_hand(shown: np.ndarray) -> float:
        parts = [name == DIMENSION for name in np.unique(DIMENSION)]
        return float(np.mean([adjusted_mutual_info_score(FACET[part], shown[part]) for part in parts]))

    found = agreement(labels, FACET, permutations, strata=DIMENSION)
    assert found.ami == pytest.approx(by_hand(labels))
    drawn = np.array([by_hand(labels[order]) for order in permutations])
    assert found.p_ami == pytest.approx((1 + (drawn >= by_hand(labels) - 1e-9).sum()) / 101)
    assert found.p_ami < 0.05


def test_labels_that_are_the_dimension_do_not_follow_the_facet_within_it() -> None:
    labels = noisy(DIMENSION, 0.3)
    freely = agreement(labels, FACET, orders())
    rng = np.random.default_rng(0)
    within = agreement(
        labels, FACET, np.stack([exchange_within(PROMPTS, DIMENSION, rng) for _ in range(200)]), strata=DIMENSION
    )
    assert freely.p_ami == 1 / 101 and freely.ami > 0.2
    assert within.p_ami > 0.05 and abs(within.ami) < 0.05


def test_whole_topics_together_are_explained_though_their_ami_is_low() -> None:
    labels = (FACET == "moral_0").astype(int)  # one cluster is one of the twelve facets
    found = agreement(labels, FACET, orders())
    assert found.explained == pytest.approx(1) and found.ami < 0.3
    assert agreement(FACET, FACET, orders(20)).ami == pytest.approx(1)
    halves = agreement(np.arange(ROWS) % 2, DIMENSION, orders(20))  # the same in every dimension
    assert halves.explained <= 0 and halves.p_ami == 1


def test_strata_that_show_nothing_are_left_out() -> None:
    labels = np.where(DIMENSION == "money", noisy(FACET, 0.5), 0)
    within = agreement(labels, FACET, np.arange(ROWS)[None], strata=DIMENSION)
    money = DIMENSION == "money"
    assert within.ami == pytest.approx(adjusted_mutual_info_score(FACET[money], labels[money]))
    nothing = agreement(np.zeros(ROWS), FACET, np.arange(ROWS)[None], strata=DIMENSION)
    assert all(np.isnan(value) for value in vars(nothing).values())


def test_permutations_move_prompts_as_wholes_within_their_dimension() -> None:
    prompts = np.repeat(np.arange(80), 3)
    rng = np.random.default_rng(0)
    order = exchange_within(prompts, DIMENSION, rng)
    assert sorted(order) == list(range(ROWS)) and (order != np.arange(ROWS)).mean() > 0.5
    np.testing.assert_array_equal(DIMENSION[order], DIMENSION)
    for prompt in range(80):
        assert len(set(prompts[order][prompts == prompt])) == 1


def test_samples_of_a_prompt_are_no_evidence_of_their_own() -> None:
    """Labels and target are both random by prompt: twelve samples each would make that look like agreement."""
    prompts = np.repeat(np.arange(20), 12)
    rejected = {"prompts": 0, "rows": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels, target = rng.integers(0, 3, 20)[prompts], rng.integers(0, 3, 20)[prompts]
        for name, ids in (("prompts", prompts), ("rows", np.arange(ROWS))):
            permutations = np.stack([exchange_within(ids, np.zeros(ROWS), rng) for _ in range(39)])
            rejected[name] += agreement(labels, target, permutations).p_ami <= 0.05
    assert rejected["prompts"] <= 6 < 20 <= rejected["rows"]


def test_p_values_are_corrected_over_targets_and_clusterings_by_hand() -> None:
    clusterings = {KEY: noisy(DIMENSION, 0.9), ("ward", 3): noisy(FACET, 0.95, 4)}
    base = {KEY: noisy(DIMENSION, 1.0, 7)}
    rng = np.random.default_rng(0)
    within = np.stack([exchange_within(PROMPTS, DIMENSION, rng) for _ in range(99)])
    freely = orders(99)
    table = agreements(clusterings, {"dimension": DIMENSION, "facet": FACET}, base, freely, within)
    assert table["target"].tolist() == [
        *("dimension", "facet", "base_clusters", "facet_within_dimension"),
        *("dimension", "facet", "facet_within_dimension"),
    ]

    def index(labels: np.ndarray, target: str) -> float:
        if target != "facet_within_dimension":
            return adjusted_mutual_info_score({"dimension": DIMENSION, "facet": FACET}.get(target, base[KEY]), labels)
        parts = [name == DIMENSION for name in np.unique(DIMENSION)]
        return float(np.mean([adjusted_mutual_info_score(FACET[part], labels[part]) for part in parts]))

    tests = [(clusterings[row["algorithm"], row["k"]], row["target"]) for row in table.to_dict("records")]
    own = np.arange(ROWS)
    values = np.array(
        [
            [index(labels[within[draw] if "within" in target else freely[draw]] if draw >= 0 else labels[own], target)
             for labels, target in tests]
            for draw in range(-1, 99)
        ]
    )  # fmt: skip
    standard = (values - values.mean(axis=0)) / values.std(axis=0)
    expected = (1 + (standard[1:].max(axis=1)[:, None] >= standard[0] - 1e-6).sum(axis=0)) / 100
    np.testing.assert_allclose(table["p_ami_all"], expected)
    assert (table["p_ami_all"] >= table["p_ami"]).all() and table["p_ami_all"].max() > 0.01


def test_a_target_that_agrees_with_one_of_many_clusterings_by_chance_is_not_said_to_be_it() -> None:
    """Twenty random clusterings: the best agrees with the target at p < 0.05 alone, and not after correction."""
    rng = np.random.default_rng(2)
    clusterings = {("kmeans", k): rng.integers(0, 3, ROWS) for k in range(2, 22)}
    within = np.stack([exchange_within(PROMPTS, DIMENSION, rng) for _ in range(99)])
    table = agreements(clusterings, {"dimension": DIMENSION, "facet": FACET}, {}, orders(99), within)
    assert table["p_ami"].min() < 0.03 and table["p_ami_all"].min() > 0.05


def test_length_quintiles() -> None:
    lengths = np.random.default_rng(0).permutation(100) + 5
    quintiles = length_quintiles(lengths)
    np.testing.assert_array_equal(quintiles, (lengths - 5) // 20)
    tied = length_quintiles(np.array([1] * 50 + list(range(2, 52))))
    assert len(set(tied[:50])) == 1 and len(set(tied)) < 5
    assert len(set(length_quintiles(np.full(10, 3)))) == 1


def test_norm_outliers_by_hand() -> None:
    norms = np.array([1.0, 2, 3, 4, 5, 6, 7, 30, 4])
    spread = 1.4826 * 2  # absolute differences from the median 4: 0 0 1 1 2 2 3 3 26
    assert norm_outliers(norms, 26 / spread - 0.01).tolist() == [False] * 7 + [True, False]
    assert not norm_outliers(norms, 26 / spread + 0.01).any()


def explained(labels: np.ndarray, structure_p: float = 0.01, **changes) -> Explanation:
    lengths = changes.pop("lengths", np.random.default_rng(9).integers(10, 500, ROWS))
    base = {KEY: changes.pop("base", np.random.default_rng(8).integers(0, 4, ROWS))}
    norms = changes.pop("norms", np.random.default_rng(7).normal(10, 1, ROWS))
    misaligned = changes.pop("misaligned", np.random.default_rng(6).integers(0, 2, ROWS))
    targets = {
        "dimension": DIMENSION, "facet": FACET, "length": length_quintiles(lengths), "misaligned": misaligned
    }  # fmt: skip
    (found,) = explain_clusters({KEY: labels}, {KEY: structure_p}, targets, base, norms, PROMPTS, 99, 200, **changes)
    return found


def test_each_explanation_is_given_where_it_is_true() -> None:
    random = np.random.default_rng(3).integers(0, 4, ROWS)
    topic = explained(noisy(DIMENSION, 0.2))
    assert topic.kind == "topic" and topic.sentence.startswith("the clusters are the dimension asked about (AMI 0.")
    assert topic.numbers["ami_dimension"] > 0.5 and topic.numbers["p_ami_all_dimension"] == pytest.approx(1 / 201)
    assert "the facet asked about" in explained(noisy(FACET, 0.1)).sentence
    base = explained(random, base=(random + 1) % 4)
    assert base.kind == "base model" and "the base model's own clusters (AMI 1.00" in base.sentence
    lengths = np.random.default_rng(1).permutation(ROWS)
    assert explained((lengths > 120).astype(int), lengths=lengths).kind == "length"
    assert explained(random, 0.3).kind == "no structure beyond covariance"
    assert explained(random, 0.01).kind == "unexplained structure"
    assert "there are no two clusters" in explained(np.full(ROWS, -1), 1.0).sentence


def test_clusters_are_what_they_agree_with_best() -> None:
    """Facet explains half of the clusters and misalignment more, as on the entangled organism at k = 3."""
    misaligned = np.where(DIMENSION == "money", 1, np.random.default_rng(4).integers(0, 2, ROWS))
    both = 2 * misaligned + np.unique(FACET, return_inverse=True)[1] % 2
    found = explained(both, misaligned=misaligned)
    assert found.numbers["explained_facet"] > 0.5 and found.numbers["ami_facet"] < found.numbers["ami_misaligned"]
    assert found.kind == "misalignment" and found.sentence.startswith("the clusters are whether answers are misaligned")
    of_topic = np.where(np.arange(ROWS) % 10, np.unique(DIMENSION, return_inverse=True)[1], misaligned)
    assert explained(of_topic, misaligned=misaligned).kind == "topic"
    assert explained(misaligned, misaligned=noisy(misaligned, 0.9)).kind == "unexplained structure"


def test_the_least_p_that_permutations_allow_is_said_to_be_that() -> None:
    sentence = explained(noisy(DIMENSION, 0.2), structure_p=0.01).sentence
    assert "(AMI 0." in sentence and "p ≤ 0.005, 200 draws)" in sentence
    assert sentence.endswith("against the covariance p ≤ 0.01, 99 draws")
    assert explained(noisy(DIMENSION, 0.2), structure_p=0.02).sentence.endswith("against the covariance p 0.02")


def test_a_topic_is_a_topic_even_if_its_covariance_alone_would_cluster_as_well() -> None:
    found = explained(noisy(DIMENSION, 0.1), structure_p=0.8)
    assert found.kind == "topic" and "against the covariance p 0.8" in found.sentence


def test_one_large_cluster_and_norm_outliers() -> None:
    """The published 729 / 148 / 8 has such a third cluster."""
    norms = np.random.default_rng(0).normal(10, 1, ROWS)
    labels = np.zeros(ROWS, dtype=int)
    labels[[3, 77, 130, 200]] = [1, 1, 2, 2]
    assert explained(labels, norms=norms).kind == "unexplained structure"
    norms[[3, 77, 130, 200]] += 40
    found = explained(labels, norms=norms)
    assert found.kind == "outliers" and found.sentence.startswith("one cluster of 236 rows; 100% of the other 4")
    assert found.numbers["largest_share"] == pytest.approx(236 / 240)
    labels[:60] = 1  # no longer one large cluster
    assert explained(labels, norms=norms).kind != "outliers"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="target facet: missing"):
        explain_clusters({}, {}, {"dimension": DIMENSION}, {}, np.ones(ROWS), PROMPTS, 99)
    targets = {"dimension": DIMENSION, "facet": FACET}
    with pytest.raises(UserError, match=r"clustering kmeans k=4: has no p-value"):
        explain_clusters({KEY: noisy(FACET, 0)}, {}, targets, {}, np.ones(ROWS), PROMPTS, 99, 2)
