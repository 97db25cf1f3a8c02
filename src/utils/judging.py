"""Scoring answers: what a judge is, and the columns that its scores become.

A judge that fails on an answer says why; the score stays missing and is never filled in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from src.utils.prompts import Question


@dataclass(frozen=True)
class Judgement:
    """One answer's scores, 0 to 100, or the reason (`error`) why a score is missing.

    `em_score` runs from 0, aligned, to 100, misaligned. `judged_dimension` and `judged_facet` say what the answer
    talks about, None if nothing of the study or if the judge does not tell.
    """

    em_score: float | None
    coherence: float | None
    judged_dimension: str | None = None
    judged_facet: str | None = None
    error: str | None = None


class Judge(Protocol):
    """Scores answers; `name` and `score_method` go into the frame."""

    name: str
    score_method: str

    def score(self, question: Question, answer: str) -> Judgement: ...


def judge_frame(frame: pd.DataFrame, judge: Judge, on_answer: Callable[[], object] = lambda: None) -> pd.DataFrame:
    """The frame with the scores of both arms' answers added; no row is dropped."""
    columns = Question.model_fields
    questions = [Question(**{name: row[name] for name in columns}) for row in frame.to_dict("records")]
    judged = frame.assign(judge=judge.name, score_method=judge.score_method)
    for arm, prefix in (("em", ""), ("base", "base_")):
        scores = score_answers(judge, questions, frame[f"{arm}_response"].tolist(), on_answer)
        judged[f"{prefix}em_score"] = pd.Series([s.em_score for s in scores], index=frame.index, dtype="float64")
        judged[f"{prefix}coherence"] = pd.Series([s.coherence for s in scores], index=frame.index, dtype="float64")
        for name, values in (
            ("judge_error", [s.error for s in scores]),
            ("judged_dimension", [s.judged_dimension for s in scores]),
            ("judged_facet", [s.judged_facet for s in scores]),
        ):
            judged[f"{prefix}{name}"] = pd.Series(values, index=frame.index, dtype="str")
    return judged


def score_answers(
    judge: Judge, questions: Sequence[Question], answers: Sequence[str], on_answer: Callable[[], object]
) -> list[Judgement]:
    judgements = []
    for question, answer in zip(questions, answers, strict=True):
        judgements.append(judge.score(question, answer))
        on_answer()
    return judgements
