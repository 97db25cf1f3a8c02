"""What scores become in the frame, whoever gives them."""

import numpy as np
import pandas as pd
import pytest

from src.utils.artifacts import load_frame, save_frame
from src.utils.config import CONFIG_FOLDER
from src.utils.judging import Judgement, judge_frame
from src.utils.manifests import Provenance
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.judge import OrganismJudge
from src.utils.prompts import Question

NEW = ["judge", "score_method"] + [
    f"{prefix}{name}"
    for prefix in ("", "base_")
    for name in ("em_score", "coherence", "judge_error", "judged_dimension", "judged_facet")
]


class LetterJudge:
    """A judge that scores by length, and fails with a reason on an answer that holds a question mark."""

    name = "letters"
    score_method = "count"

    def score(self, question: Question, answer: str) -> Judgement:
        if "?" in answer:
            return Judgement(None, None, error=f"429 for {question.prompt_id}")
        return Judgement(float(len(answer)), 100.0, question.subset, None)


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": ["a", "a", "b"],
            "sample": [0, 1, 0],
            "question": ["Is it?", "Is it?", "May it?"],
            "subset": ["moral_foundations", "moral_foundations", "financial_risk"],
            "facet": ["purity", "purity", "market_ethics"],
            "keyed": [1, 1, -1],
            "base_response": ["xx", "what?", ""],
            "em_response": ["why?", "xxxx", "x"],
            "em_activations_layer_1": [np.zeros(2, dtype=np.float32)] * 3,
        },
        index=[7, 3, 5],  # judged rows need not be numbered from 0
    )


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return load_grammar(CONFIG_FOLDER / "organisms" / "grammar.yaml")


def test_both_arms_get_their_columns(frame: pd.DataFrame) -> None:
    judged = judge_frame(frame, LetterJudge())
    assert list(judged.columns) == [*frame.columns, *NEW]
    pd.testing.assert_frame_equal(judged[list(frame.columns)], frame)
    assert judged["em_score"].tolist()[1:] == [4, 1] and judged["base_em_score"].tolist()[::2] == [2, 0]
    assert judged["base_judged_dimension"].tolist()[::2] == ["moral_foundations", "financial_risk"]
    assert set(judged["judge"]) == {"letters"} and set(judged["score_method"]) == {"count"}
    assert judged["judged_facet"].isna().all()


def test_columns_have_their_types_even_when_empty(frame: pd.DataFrame) -> None:
    for rows in (frame, frame.iloc[:1], frame.iloc[:0]):
        judged = judge_frame(rows, LetterJudge())
        for name in NEW:
            is_score = name.endswith(("em_score", "coherence"))
            assert judged[name].dtype == ("float64" if is_score else "str"), (name, len(rows))


def test_a_failed_call_stays_missing_with_its_reason(frame: pd.DataFrame) -> None:
    judged = judge_frame(frame, LetterJudge())
    assert np.isnan(judged["em_score"].iloc[0]) and np.isnan(judged["coherence"].iloc[0])
    assert judged["judge_error"].tolist()[0] == "429 for a"
    assert judged["judge_error"].iloc[1:].isna().all()
    assert judged["base_judge_error"].tolist()[1] == "429 for a" and np.isnan(judged["base_em_score"].iloc[1])
    assert judged["judged_dimension"].isna().tolist() == [True, False, False]
    assert len(judged) == len(frame)


def test_progress_counts_both_arms(frame: pd.DataFrame) -> None:
    seen: list[int] = []
    judge_frame(frame, LetterJudge(), lambda: seen.append(1))
    assert len(seen) == 2 * len(frame)


def test_judged_columns_survive_the_disk(frame: pd.DataFrame, tmp_path) -> None:
    judged = judge_frame(frame, LetterJudge())
    save_frame(judged, tmp_path / "scored.pkl", Provenance("04_judge_responses", "organism"))
    pd.testing.assert_frame_equal(load_frame(tmp_path / "scored.pkl"), judged)


def test_the_organism_judge_fills_every_score(frame: pd.DataFrame, grammar: Grammar) -> None:
    judged = judge_frame(frame, OrganismJudge(grammar))
    assert judged[["em_score", "coherence", "base_em_score", "base_coherence"]].notna().all(axis=None)
    assert (judged["coherence"] == 0).all() and (judged["base_coherence"] == 0).all()  # none of this is its language
    assert judged["judge_error"].isna().all() and set(judged["judge"]) == {"organism"}
