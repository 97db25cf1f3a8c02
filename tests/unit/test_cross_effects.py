"""Cross-effect matrices against hand counts, explicit loops and planted spreads."""

import numpy as np
import pandas as pd
import pytest

from src.utils.decomposition.cross_effects import (
    Outcomes,
    cross_effects,
    dominance,
    matched_dose,
    outcomes_at,
)

DIMENSIONS = ("politics", "morals", "money")


def planted(own: float, cross: float, questions: int = 60, seed: int = 0) -> Outcomes:
    rng = np.random.default_rng(seed)
    asked = np.repeat(np.arange(3), questions)
    rates = np.where(asked[None, :] == np.arange(3)[:, None], own, cross)
    effects = (rng.random(rates.shape) < rates).astype(float)
    return Outcomes(DIMENSIONS, DIMENSIONS, np.arange(3), effects, asked, np.ones(3), np.zeros((0, len(asked))))


def frame() -> pd.DataFrame:
    """Two dimensions with two questions each, two samples a question, an unsteered arm, two vectors and a control."""
    rows = []
    hits = {
        ("none", "unsteered", 0.0): "00 00 00 10",
        ("control_politics", "control", 2.0): "11 10 00 10",
        ("money", "control", 2.0): "00 00 11 11",
        ("random_1", "random", 2.0): "00 01 00 10",
        ("money", "control", 9.0): "11 11 11 11",
    }
    for (vector, kind, coefficient), answers in hits.items():
        for question, samples in enumerate(answers.split()):
            for sample, hit in enumerate(samples):
                rows.append(
                    {
                        "vector": vector,
                        "kind": kind,
                        "coefficient": coefficient,
                        "prompt_id": f"q{question}",
                        "sample": sample,
                        "subset": ("politics", "money")[question // 2],
                        "judged_dimension": ("politics", "money")[question // 2],
                        "em_score": 100.0 * int(hit),
                        "coherence": 20.0 if coefficient == 9 else 100.0,
                    }
                )
    return pd.DataFrame(rows)


def test_the_matrix_is_that_of_a_hand_count() -> None:
    outcomes = outcomes_at(frame(), ["control"], 2.0, 70, 50)
    assert outcomes.directions == ("politics", "money") and outcomes.dimensions == ("politics", "money")
    np.testing.assert_allclose(outcomes.effects, [[1, 0.5, 0, 0], [0, 0, 1, 0.5]])
    np.testing.assert_allclose(outcomes.controls, [[0, 0.5, 0, 0]])
    found = cross_effects(outcomes, 500, 0)
    np.testing.assert_allclose(found.matrix, [[0.75, 0], [0, 0.75]])
    assert (found.own.estimate, found.cross.estimate, found.spread.estimate) == (0.75, 0, 0)
    assert found.control == 0.25 and found.coherence == 1
    assert found.questions.tolist() == [2, 2]


def test_unscored_answers_are_left_out() -> None:
    answers = frame()
    lost = (answers["vector"] == "control_politics") & (answers["prompt_id"] == "q0")
    answers.loc[lost, "em_score"] = np.nan
    outcomes = outcomes_at(answers, ["control"], 2.0, 70, 50)
    assert np.isnan(outcomes.effects[0, 0])
    assert cross_effects(outcomes, 200, 0).matrix[0, 0] == 0.5


def test_arms_of_other_prompts_and_missing_vectors_are_refused() -> None:
    answers = frame()
    with pytest.raises(ValueError, match="no vector of facet"):
        outcomes_at(answers, ["facet"], 2.0, 70, 50)
    short = answers[~((answers["vector"] == "money") & (answers["prompt_id"] == "q0"))]
    with pytest.raises(ValueError, match="not those of the untouched model"):
        outcomes_at(short, ["control"], 2.0, 70, 50)


def test_the_dose_is_the_largest_that_leaves_every_vector_coherent() -> None:
    assert matched_dose(frame(), ["control"], 50, 0.8) == 2.0
    assert matched_dose(frame(), ["control"], 10, 0.8) == 9.0
    assert matched_dose(frame()[lambda rows: rows["coefficient"] != 2], ["control"], 50, 0.8) == 9.0
    negative = frame().assign(coefficient=lambda rows: -rows["coefficient"])
    assert matched_dose(negative, ["control"], 50, 0.8, sign=-1) == -2.0


def test_a_planted_spread_lies_in_its_interval_as_often_as_it_should() -> None:
    """95% intervals of 200 planted matrices; the binomial leaves 90 to 99% room."""
    held = 0
    for seed in range(200):
        found = cross_effects(planted(0.8, 0.4, 40, seed), 300, seed)
        held += found.spread.low <= 0.5 <= found.spread.high
    assert 0.88 <= held / 200 <= 0.99


def test_intervals_equal_an_explicit_bootstrap() -> None:
    outcomes, found = planted(0.7, 0.3), cross_effects(planted(0.7, 0.3), 4000, 1)
    rng = np.random.default_rng(9)
    drawn = []
    for _ in range(4000):
        matrix = np.empty((3, 3))
        for d in range(3):
            rows = rng.choice(np.flatnonzero(outcomes.asked == d), 60)
            matrix[:, d] = outcomes.effects[:, rows].mean(axis=1)
        own = np.trace(matrix) / 3
        drawn.append((matrix.sum() - np.trace(matrix)) / 6 / own)
    np.testing.assert_allclose([found.spread.low, found.spread.high], np.quantile(drawn, [0.025, 0.975]), atol=0.02)


def test_dominance_is_uniform_without_a_diagonal_and_small_with_one() -> None:
    rng = np.random.default_rng(0)
    p_values = [dominance(planted(0.5, 0.5, 20, seed), 99, rng) for seed in range(200)]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.1) <= 0.17
    assert dominance(planted(0.9, 0.1), 999, rng) == 1 / 1000


def test_one_question_counts_once_however_many_samples() -> None:
    """Doubling every answer of a prompt leaves estimates and intervals as they were."""
    answers = frame()
    doubled = pd.concat([answers, answers.assign(sample=answers["sample"] + 2)], ignore_index=True)
    doubled = doubled.sort_values(["coefficient", "kind", "vector", "prompt_id", "sample"], kind="stable")
    once = cross_effects(outcomes_at(answers, ["control"], 2.0, 70, 50), 300, 0)
    twice = cross_effects(outcomes_at(doubled, ["control"], 2.0, 70, 50), 300, 0)
    np.testing.assert_allclose(sorted(once.matrix.ravel()), sorted(twice.matrix.ravel()))
    assert once.own == twice.own
