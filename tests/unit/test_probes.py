"""Probes against scikit-learn, on data whose only signal is known: the topic, the prompt, a planted direction, none."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from src.utils.decomposition.probe_features import Transform, dense, one_hot, tf_idf
from src.utils.decomposition.probe_scores import Predictions, auroc, balanced_accuracy
from src.utils.decomposition.probes import (
    Nesting,
    ProbeRows,
    compare_probes,
    cross_dimension_transfer,
    nested_predictions,
)
from src.utils.decomposition.prompt_resampling import prompt_weights
from src.utils.errors import UserError

DIMENSIONS = ("finance", "moral", "political", "technology")
QUICK = Nesting(outer=4, inner=3, penalties=(0.1, 10.0))


def rows_of(count: int, each: int = 1) -> ProbeRows:
    """Rows in order of dimension, `each` answers to a prompt, two topics a dimension, text that names the topic."""
    prompt = np.arange(count) // each
    dimension = np.array(DIMENSIONS)[prompt * len(DIMENSIONS) * each // count]
    topic = np.array([f"{name}_{number % 2}" for name, number in zip(dimension, prompt, strict=True)])
    texts = [f"what about {name}" for name in topic]
    return ProbeRows(np.array([f"q{number}" for number in prompt]), dimension, topic, texts, texts)


def weights_of(rows: int, resamples: int = 3) -> np.ndarray:
    groups = np.array([f"q{row // 2}" for row in range(rows)])
    return np.vstack([np.ones(rows), prompt_weights(groups, resamples, np.random.default_rng(0))])


def values(table: pd.DataFrame, predictor: str, measure: str = "auroc") -> dict[str, float]:
    chosen = table[(table["predictor"] == predictor) & (table["measure"] == measure)]
    assert len(chosen) == 1
    return chosen.iloc[0].drop(["predictor", "measure"]).to_dict()


@pytest.mark.parametrize("classes", [2, 4])
def test_measures_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, size=90)
    scores = np.round(rng.standard_normal((90, classes)), 1)  # with ties
    if classes == 2:
        scores[:, 0] = -scores[:, 1]
    predictions = Predictions(truth, scores, np.zeros(90, dtype=int))
    weights = weights_of(90)
    found, accurate = auroc(predictions, weights), balanced_accuracy(predictions, weights)
    for place, weight in enumerate(weights):
        areas = [roc_auc_score(truth == name, scores[:, name], sample_weight=weight) for name in range(classes)]
        assert found[place] == pytest.approx(areas[1] if classes == 2 else np.mean(areas))
        by_library = balanced_accuracy_score(truth, scores.argmax(axis=1), sample_weight=weight)
        assert accurate[place] == pytest.approx(by_library)


def test_an_offset_between_folds_changes_no_auroc() -> None:
    rng = np.random.default_rng(0)
    truth, fold = rng.integers(0, 2, size=60), np.arange(60) % 3
    score = rng.standard_normal(60) + truth
    within = [roc_auc_score(truth[fold == number], score[fold == number]) for number in range(3)]
    pairs = [truth[fold == n].sum() * (1 - truth[fold == n]).sum() for n in range(3)]
    shifted = score + 10.0 * fold
    found = auroc(Predictions(truth, np.column_stack([-shifted, shifted]), fold), np.ones((1, 60)))[0]
    assert found == pytest.approx(np.average(within, weights=pairs))


@pytest.mark.parametrize("features", [12, 150])
def test_nested_predictions_with_one_penalty_are_those_of_cross_val_predict(features: int) -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, size=80)
    matrix = rng.standard_normal((80, features)) * rng.uniform(0.1, 50, size=features) + truth[:, None]
    groups = np.array([f"q{row // 2}" for row in range(80)])
    nesting = Nesting(outer=4, inner=3, penalties=(1.0,), seed=5)
    found = nested_predictions(dense(matrix, np.full(80, "x"), None), truth, groups, nesting)
    library = make_pipeline(
        StandardScaler(),
        FunctionTransformer(lambda scaled: scaled / np.sqrt(features)),
        LogisticRegression(C=1.0, class_weight="balanced", tol=1e-8, max_iter=5000),
    )
    splitter = StratifiedGroupKFold(4, shuffle=True, random_state=5)
    expected = cross_val_predict(library, matrix, truth, groups=groups, cv=splitter, method="decision_function")
    np.testing.assert_allclose(found.scores[:, 1], expected, atol=0.02)
    for number, (_, test) in enumerate(splitter.split(matrix, truth, groups)):
        assert set(found.fold[test]) == {number}


def test_the_penalty_is_chosen_within_the_training_rows() -> None:
    rng = np.random.default_rng(2)
    truth = np.arange(120) % 2
    matrix = rng.standard_normal((120, 60))
    matrix[:, 0] += 1.5 * truth
    groups = np.array([f"q{row}" for row in range(120)])
    encode = dense(matrix, np.full(120, "x"), None)
    alone = {c: nested_predictions(encode, truth, groups, Nesting(4, 3, (c,))).scores for c in (0.001, 1000.0)}
    both = nested_predictions(encode, truth, groups, Nesting(4, 3, (0.001, 1000.0)))
    chosen = [
        next(c for c, scores in alone.items() if np.array_equal(scores[both.fold == n], both.scores[both.fold == n]))
        for n in range(4)
    ]
    assert chosen.count(0.001) >= 3  # 60 features for 90 rows overfit


def test_labels_of_prompts_cannot_be_read_off_their_other_answers() -> None:
    rng = np.random.default_rng(3)
    each, prompts = 4, 60
    label, place = rng.permutation(np.arange(prompts) % 2), rng.standard_normal((prompts, 40)) * 5
    matrix = np.repeat(place, each, axis=0) + 0.1 * rng.standard_normal((prompts * each, 40))
    rows = rows_of(prompts * each, each)
    truth = np.repeat(label, each)
    found = nested_predictions(dense(matrix, rows.dimensions, None), truth, rows.groups, QUICK)
    hits = int((found.scores.argmax(axis=1) == truth)[::each].sum())
    assert binom.ppf(0.001, prompts, 0.5) <= hits <= binom.ppf(0.999, prompts, 0.5)
    apart = np.array([f"row{row}" for row in range(prompts * each)])  # what goes wrong without the prompts
    leaked = nested_predictions(dense(matrix, rows.dimensions, None), truth, apart, QUICK)
    assert (leaked.scores.argmax(axis=1) == truth).mean() > 0.8


def test_preparation_is_fitted_on_training_rows_only() -> None:
    rows = rows_of(80)
    matrix = np.hstack([np.arange(80)[:, None], np.random.default_rng(0).standard_normal((80, 5))])
    seen: list[int] = []

    def prepare(train: np.ndarray, dimensions: np.ndarray) -> Transform:
        fitted = set(train[:, 0].astype(int))
        seen.append(len(fitted))

        def transform(part: np.ndarray, _: np.ndarray) -> np.ndarray:
            asked = set(part[:, 0].astype(int))
            assert asked == fitted or not asked & fitted
            return part - train.mean(axis=0)

        assert (dimensions == rows.dimensions[train[:, 0].astype(int)]).all()
        return transform

    nested_predictions(dense(matrix, rows.dimensions, prepare), np.arange(80) % 2, rows.groups, QUICK)
    assert sorted(seen) == [40] * 12 + [60] * 4


def test_a_probe_that_reads_the_topic_does_not_pass_for_more() -> None:
    rng = np.random.default_rng(4)
    rows = rows_of(240)
    names, index = np.unique(rows.topics, return_inverse=True)
    matrix = 3 * rng.standard_normal((len(names), 30))[index] + rng.standard_normal((240, 30))
    share = np.linspace(0.05, 0.95, len(names))  # misaligned answers in each topic, and nothing else to know
    misaligned = rng.random(240) < share[index]
    base = rng.standard_normal((240, 30))
    table = compare_probes(matrix, base, misaligned, rows, QUICK, resamples=300)
    assert values(table, "activations")["low"] > 0.7  # a probe on its own looks like a finding
    topic = values(table, "topic")
    assert topic["excess_low"] < 0 and topic["excess"] < 0.03
    assert abs(values(table, "question_text")["excess"]) < 0.1  # the question names the topic
    assert values(table, "base_activations")["excess_low"] > 0.1


def test_a_planted_direction_is_found_over_topic_and_text_and_shuffled_labels_are_at_chance() -> None:
    rng = np.random.default_rng(5)
    rows = rows_of(240)
    misaligned = rng.permutation(np.arange(240) % 2).astype(bool)
    direction = rng.standard_normal(50) / np.sqrt(50)
    matrix = rng.standard_normal((240, 50)) + 5 * misaligned[:, None] * direction
    rows = ProbeRows(
        rows.groups, rows.dimensions, rows.topics, rows.questions, ["sure buy" if bad else "" for bad in misaligned]
    )
    table = compare_probes(matrix, rng.standard_normal((240, 50)), misaligned, rows, QUICK, resamples=300)
    assert list(dict.fromkeys(table["predictor"])) == [
        "activations",
        "topic",
        "question_text",
        "answer_text",
        "question_and_answer_text",
        "base_activations",
        "shuffled_labels",
        "prompt_identity",
    ]
    assert values(table, "activations")["low"] > 0.95
    for predictor in ("topic", "question_text", "base_activations", "shuffled_labels"):
        assert values(table, predictor)["excess_low"] > 0.2
    assert values(table, "answer_text")["estimate"] == 1 and values(table, "answer_text")["excess"] <= 0
    for _, row in table.iterrows():
        assert row["predictor"] == "prompt_identity" or row["low"] <= row["estimate"] <= row["high"]
    chance = values(table, "shuffled_labels", "balanced_accuracy")["estimate"] * 240
    assert binom.ppf(0.001, 240, 0.5) <= chance <= binom.ppf(0.999, 240, 0.5)


def test_the_ceiling_of_the_prompt_is_what_its_other_answers_say() -> None:
    rng = np.random.default_rng(6)
    rows, prompt = rows_of(240, each=3), np.arange(240) // 3
    target = rng.random(240) < np.where(rng.random(80) < 0.5, 0.9, 0.1)[prompt]
    matrix = rng.standard_normal((240, 12))
    table = compare_probes(matrix, matrix, target, rows, QUICK, resamples=50)
    others = (np.bincount(prompt, target)[prompt] - target) / 2
    fold = nested_predictions(dense(matrix, rows.dimensions, None), target, rows.groups, QUICK).fold
    one, other = others[target], others[~target]
    in_order = (one[:, None] > other) + 0.5 * (one[:, None] == other)
    together = fold[target][:, None] == fold[~target]
    assert values(table, "prompt_identity")["estimate"] == pytest.approx(in_order[together].mean())
    assert values(table, "prompt_identity")["low"] > 0.7 > values(table, "topic")["estimate"]

    once = compare_probes(matrix, matrix, target, rows_of(240), QUICK, resamples=50)
    assert np.isnan([*values(once, "prompt_identity").values()]).all()


def test_question_and_answer_together_tell_what_neither_tells_alone() -> None:
    rng = np.random.default_rng(7)
    rows, target = rows_of(240), rng.permutation(np.arange(240) % 2).astype(bool)
    is_asked = rng.random(240) < 0.5  # the question tells of half of the rows, the answer of the others
    told = np.where(target, "bad", "good")
    questions, answers = (np.where(known, told, "maybe").tolist() for known in (is_asked, ~is_asked))
    rows = ProbeRows(rows.groups, rows.dimensions, rows.topics, questions, answers)
    matrix = rng.standard_normal((240, 4))
    table = compare_probes(matrix, matrix, target, rows, QUICK, resamples=50)
    found = {name: values(table, f"{name}_text")["estimate"] for name in ("question", "answer", "question_and_answer")}
    assert found["question_and_answer"] > 0.99 and max(found["question"], found["answer"]) < 0.9


def test_several_classes_are_told_apart_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(240)
    _, index = np.unique(rows.dimensions, return_inverse=True)
    matrix = 2 * rng.standard_normal((4, 20))[index] + rng.standard_normal((240, 20))
    table = compare_probes(matrix, matrix, rows.dimensions, rows, QUICK, resamples=200)
    assert values(table, "activations")["estimate"] > 0.98
    assert values(table, "topic")["estimate"] == 1  # the ceiling
    assert values(table, "base_activations")["excess"] == 0  # the same matrix on the same folds
    chance = values(table, "shuffled_labels", "balanced_accuracy")["estimate"] * 240
    assert binom.ppf(0.001, 240, 0.25) <= chance <= binom.ppf(0.999, 240, 0.25)
    assert values(table, "shuffled_labels")["estimate"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("is_shared", [True, False])
def test_transfer_between_dimensions_tells_a_shared_direction_from_several(is_shared: bool) -> None:
    rng = np.random.default_rng(7)
    rows = rows_of(320)
    names, index = np.unique(rows.dimensions, return_inverse=True)
    directions = np.linalg.qr(rng.standard_normal((40, 4)))[0].T * 6
    misaligned = rng.permutation(np.arange(320) % 2).astype(bool)
    misaligned[rows.dimensions == "technology"] = True
    chosen = directions[0] if is_shared else directions[index]
    matrix = 4 * rng.standard_normal((4, 40))[index] + rng.standard_normal((320, 40)) + misaligned[:, None] * chosen
    table = cross_dimension_transfer(matrix, misaligned, rows.dimensions, rows.groups, QUICK, resamples=200)
    assert len(table) == 16 and set(table["train"]) == set(names)
    for _, row in table.iterrows():
        if "technology" in (row["train"], row["test"]):
            assert np.isnan(row["auroc"]) and row["reason"] == "technology: all rows are misaligned"
            continue
        assert row["reason"] == "" and row["low"] <= row["auroc"] <= row["high"]
        assert row["misaligned"] + row["aligned"] == 80
        if is_shared or row["train"] == row["test"]:
            assert row["low"] > 0.9
        else:
            assert row["auroc"] == pytest.approx(0.5, abs=0.2)


def test_a_dimension_that_rests_on_a_handful_of_answers_is_left_blank() -> None:
    """Nine aligned prompts in one dimension: enough for four folds, too few to say anything."""
    rng = np.random.default_rng(8)
    rows, truth = rows_of(160), rng.permutation(np.arange(160) % 2).astype(bool)
    few = np.flatnonzero(rows.dimensions == "moral")
    truth[few] = True
    truth[few[:9]] = False
    table = cross_dimension_transfer(
        rng.standard_normal((160, 4)), truth, rows.dimensions, rows.groups, Nesting(4, 3, (1.0,)), resamples=20
    )
    touched = (table["train"] == "moral") | (table["test"] == "moral")
    assert (
        table.loc[touched, ["auroc", "low", "high"]].isna().all(axis=None)
        and table.loc[~touched, "auroc"].notna().all()
    )
    assert set(table.loc[touched, "reason"]) == {"moral: aligned in 9 prompts, 10 needed"}
    assert table.loc[table["test"] == "moral", "aligned"].unique().tolist() == [9]


def test_a_transfer_by_hand() -> None:
    rng = np.random.default_rng(8)
    rows, truth = rows_of(160), rng.permutation(np.arange(160) % 2).astype(bool)
    matrix = rng.standard_normal((160, 10)) + 0.5 * truth[:, None]
    nesting = Nesting(4, 3, (1.0,))
    table = cross_dimension_transfer(matrix, truth, rows.dimensions, rows.groups, nesting, resamples=20)
    found = table.set_index(["train", "test"])["auroc"]
    one, other = rows.dimensions == "moral", rows.dimensions == "political"
    scaler = StandardScaler().fit(matrix[one])
    model = LogisticRegression(C=1.0, class_weight="balanced", tol=1e-8)
    model.fit(scaler.transform(matrix[one]) / np.sqrt(10), truth[one])
    expected = roc_auc_score(truth[other], model.decision_function(scaler.transform(matrix[other]) / np.sqrt(10)))
    assert found["moral", "political"] == pytest.approx(expected, abs=0.005)


def test_text_and_topics_that_training_did_not_have_are_no_values() -> None:
    texts = ["buy gold now", "save a little", "", "unseen words here"]
    features = tf_idf(texts)(np.array([0, 1]))
    assert features(np.array([2, 3])).nnz == 0 and features(np.array([0])).nnz == 5
    topics = one_hot(np.array([["a", "x"], ["b", "y"], ["c", "x"]]))(np.array([0, 1]))
    np.testing.assert_array_equal(topics(np.array([2])).toarray(), [[0, 0, 1, 0]])
    assert tf_idf(["", ""])(np.array([0, 1]))(np.array([0])).shape == (1, 1)


def test_what_cannot_be_probed_is_refused() -> None:
    rows = rows_of(80)
    matrix = np.random.default_rng(0).standard_normal((80, 4))
    with pytest.raises(UserError, match="target: all rows are True; leave the class out"):
        compare_probes(matrix, matrix, np.ones(80, bool), rows, QUICK)
    with pytest.raises(UserError, match="target: True in 3 prompts, 4 needed"):
        compare_probes(matrix, matrix, np.arange(80) < 3, rows, QUICK)
    with pytest.raises(UserError, match="decided by the dimension"):
        compare_probes(matrix, matrix, rows.dimensions, rows, QUICK, prepare=lambda m, d: lambda part, of: part)
