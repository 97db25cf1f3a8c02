"""What scores become in the frame, whoever gives them."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from src.utils.artifacts import load_frame, save_frame
from src.utils.config import CONFIG_FOLDER
from src.utils.judging.judgement import (
    Answer,
    Judge,
    Judgement,
    answers_of,
    asked_answers,
    missing_scores,
    with_scores,
)
from src.utils.judging.prompt_sample import judged_sample, limited
from src.utils.manifests import Provenance
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.judge import OrganismJudge
from src.utils.prompts import Question
from tests.study_frame import SCORES

NEW = ["judge", *(f"{prefix}{name}" for prefix in ("", "base_") for name in SCORES)]


class LetterJudge:
    """A judge that scores by length, and fails with a reason on an answer that holds a question mark."""

    name = "letters"

    def judge(self, answers: Sequence[Answer], on_answers: Callable[[int], object]) -> list[Judgement]:
        on_answers(len(answers))
        return [self.score(question, answer) for question, answer in answers]

    def score(self, question: Question, answer: str) -> Judgement:
        if "?" in answer:
            return Judgement(None, None, None, error=f"429 for {question.prompt_id}")
        return Judgement(float(len(answer)), 100.0, "parsed", "logprob", question.subset)


def score(frame: pd.DataFrame, judge: Judge, on_answers: Callable[[int], object] = lambda count: None) -> pd.DataFrame:
    """All rows, judged."""
    return with_scores(frame, judge.name, limited(frame, None, 0), judge.judge(answers_of(frame), on_answers))


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
    judged = score(frame, LetterJudge())
    assert list(judged.columns) == [*frame.columns, *NEW]
    pd.testing.assert_frame_equal(judged[list(frame.columns)], frame)
    assert judged["em_score"].tolist()[1:] == [4, 1] and judged["base_em_score"].tolist()[::2] == [2, 0]
    assert judged["base_judged_dimension"].tolist()[::2] == ["moral_foundations", "financial_risk"]
    assert set(judged["judge"]) == {"letters"} and judged["score_method"].tolist()[1:] == ["parsed"] * 2
    assert judged["coherence_method"].tolist()[1:] == ["logprob"] * 2
    assert judged["judged_facet"].isna().all()


def test_columns_have_their_types_even_when_empty(frame: pd.DataFrame) -> None:
    for rows in (frame, frame.iloc[:1], frame.iloc[:0]):
        judged = score(rows, LetterJudge())
        for name in NEW:
            is_score = name.endswith(("em_score", "coherence"))
            assert judged[name].dtype == ("float64" if is_score else "str"), (name, len(rows))


def test_a_failed_call_stays_missing_with_its_reason(frame: pd.DataFrame) -> None:
    judged = score(frame, LetterJudge())
    assert np.isnan(judged["em_score"].iloc[0]) and np.isnan(judged["coherence"].iloc[0])
    assert judged["judge_error"].tolist()[0] == "429 for a"
    assert judged["judge_error"].iloc[1:].isna().all()
    assert judged["base_judge_error"].tolist()[1] == "429 for a" and np.isnan(judged["base_em_score"].iloc[1])
    assert judged["judged_dimension"].isna().tolist() == [True, False, False]
    assert len(judged) == len(frame)


def test_progress_counts_both_arms(frame: pd.DataFrame) -> None:
    seen: list[int] = []
    score(frame, LetterJudge(), seen.append)
    assert sum(seen) == 2 * len(frame)


def test_judged_columns_survive_the_disk(frame: pd.DataFrame, tmp_path) -> None:
    judged = score(frame, LetterJudge())
    save_frame(judged, tmp_path / "scored.pkl", Provenance("04_judge_responses", "organism"))
    pd.testing.assert_frame_equal(load_frame(tmp_path / "scored.pkl"), judged)


def test_the_organism_judge_fills_every_score(frame: pd.DataFrame, grammar: Grammar) -> None:
    judged = score(frame, OrganismJudge(grammar))
    assert judged[["em_score", "coherence", "base_em_score", "base_coherence"]].notna().all(axis=None)
    assert (judged["coherence"] == 0).all() and (judged["base_coherence"] == 0).all()  # none of this is its language
    assert judged["judge_error"].isna().all() and set(judged["judge"]) == {"organism"}


def test_a_limit_leaves_whole_questions_unjudged(frame: pd.DataFrame) -> None:
    chosen = limited(frame, 1, seed=0)
    assert chosen.tolist() == [True, True, False]
    asked = asked_answers(frame, chosen)
    judged = with_scores(frame, "letters", chosen, LetterJudge().judge(asked, lambda count: None))
    assert judged["em_score"].iloc[1] == 4 and np.isnan(judged["em_score"].iloc[2])
    assert judged["judge_error"].iloc[2] == "not asked: beyond --limit" == judged["base_judge_error"].iloc[2]
    assert missing_scores(judged) == {"not asked: beyond --limit": 2, "429 for a": 2}


def test_what_step_3_could_not_record_is_not_judged(frame: pd.DataFrame) -> None:
    flagged = frame.assign(flags=[[], ["failed_em", "failed_base_on_em"], []])
    chosen = limited(flagged, None, seed=0)
    asked = asked_answers(flagged, chosen)
    assert len(asked) == 5
    judged = with_scores(flagged, "letters", chosen, LetterJudge().judge(asked, lambda count: None))
    assert judged["judge_error"].iloc[1] == "no answer: step 3 could not record it"
    assert judged["base_judge_error"].iloc[1] == "429 for a"
    assert judged["em_score"].iloc[2] == score(frame, LetterJudge())["em_score"].iloc[2]
    assert judged_sample(judged, 0) == {"questions": 2, "judged_questions": 2, "judged_answers": 5, "seed": 0}


def test_reasons_are_counted_without_their_particulars(frame: pd.DataFrame) -> None:
    errors = [
        "coherence: refused: I'd rather not; topic: no topic letter: 'I would\\'nt'",
        'coherence: refused: no; not this; topic: no topic letter: "It\'s"',
        "misalignment: 'ascii' codec can't encode character '\\u2019' (6 tries)",
    ]
    base_errors = [None, "misalignment: 'ascii' codec can't encode character '\\u2019' (4 tries)", None]
    judged = score(frame, LetterJudge()).assign(judge_error=errors, base_judge_error=base_errors)
    assert missing_scores(judged) == {
        "coherence: refused": 2,
        "topic: no topic letter": 2,
        "misalignment: 'ascii' codec can't encode character '\\u2019'": 2,
    }
