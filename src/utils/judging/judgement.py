"""What a judge is, and the columns that its scores become.

A judge that fails on an answer says why; the score stays missing and is never filled in.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Bool

from src.utils.config_sections import JudgeKind, JudgingConfig
from src.utils.model_files import public_name
from src.utils.prompts import Question

ARMS = {"em": "", "base": "base_"}  # arm -> prefix of its score columns

# grammar: read off the answer. logprob: probability-weighted mean over the integers. parsed: the integer in the reply.
ScoreMethod = Literal["grammar", "logprob", "parsed"]
ASPECTS = ("misalignment", "coherence", "topic")
NEXT_ASPECT = re.compile(rf"; (?=(?:{'|'.join(ASPECTS)}): )")
# what differs from reply to reply: a count, the quotation at the end, the words of a refusal
PARTICULARS = re.compile(
    r""" \([^()]*\d[^()]*\)|: (?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")$|(?<=refused): .*$""", re.DOTALL
)
Answer = tuple[Question, str]
NOT_ASKED = "not asked: beyond --limit"
LEFT_OUT = "left out: --max-cost was reached"
NO_ANSWER = "no answer: "  # and why
NOT_RECORDED = "step 3 could not record it"
FAILURE = "failure"  # column that says why a row has no answer, in frames where one has none
NO_TOPIC = "none"  # judged_dimension of an answer that talks about none of the study's dimensions


@dataclass(frozen=True)
class Judgement:
    """One answer's scores, 0 to 100, or the reason (`error`) why a score is missing.

    `em_score` runs from 0, aligned, to 100, misaligned; `score_method` and `coherence_method` say how each was read,
    None where the score is missing. `judged_dimension` and `judged_facet` say what the answer talks about, None if the
    judge does not tell; `judged_dimension` is `NO_TOPIC` for an answer about nothing of the study.
    """

    em_score: float | None
    coherence: float | None
    score_method: ScoreMethod | None
    coherence_method: ScoreMethod | None = None
    judged_dimension: str | None = None
    judged_facet: str | None = None
    error: str | None = None


class Judge(Protocol):
    """Scores answers, several at once; `name` goes into the frame.

    The judgements come in the answers' order. `on_answers` gets how many answers were done since its last call.
    """

    @property
    def name(self) -> str: ...

    def judge(self, answers: Sequence[Answer], on_answers: Callable[[int], object]) -> list[Judgement]: ...


def judge_name(settings: JudgingConfig, judge: JudgeKind, model: str | None) -> str:
    """What a judge is called in frames, manifests and its records: kind and model."""
    model = settings.model_of(judge, model)
    return f"{judge}:{public_name(model)}" if model else judge


def answers_of(frame: pd.DataFrame, arms: Sequence[str] = tuple(ARMS)) -> list[Answer]:
    """The (question, answer) pairs of a frame: all rows of the first arm, then those of the next."""
    columns = Question.model_fields
    questions = [Question(**{name: row[name] for name in columns}) for row in frame.to_dict("records")]
    return [
        (question, answer)
        for arm in arms
        for question, answer in zip(questions, frame[f"{arm}_response"].tolist(), strict=True)
    ]


def with_failures(answers: pd.DataFrame, failures: Mapping[int, str]) -> pd.DataFrame:
    """The frame with why rows have no answer, by row number, in a column of its own; as it is where none failed."""
    if not failures:
        return answers
    reasons = pd.Series(failures, dtype="str").reindex(range(len(answers)))
    return answers.assign(**{FAILURE: reasons.set_axis(answers.index)})


def reasons_not_to_ask(frame: pd.DataFrame, chosen: Bool[np.ndarray, " rows"]) -> list[str | None]:
    """For each of `answers_of(frame)` why it is not judged, None where it is.

    Only `chosen` rows are, and of them not what step 3 could not record (the flag `failed_<arm>`): the empty text that
    stands there is nobody's answer.
    """
    flags = frame["flags"] if "flags" in frame else pd.Series([[]] * len(frame))
    return [
        NOT_ASKED if not is_chosen else NO_ANSWER + NOT_RECORDED if f"failed_{arm}" in flagged else None
        for arm in ARMS
        for is_chosen, flagged in zip(chosen.tolist(), flags, strict=True)
    ]


def asked_answers(frame: pd.DataFrame, chosen: Bool[np.ndarray, " rows"]) -> list[Answer]:
    """Those of `answers_of(frame)` that are judged."""
    reasons = reasons_not_to_ask(frame, chosen)
    return [answer for answer, reason in zip(answers_of(frame), reasons, strict=True) if reason is None]


def with_scores(
    frame: pd.DataFrame, judge_name: str, chosen: Bool[np.ndarray, " rows"], judgements: Sequence[Judgement]
) -> pd.DataFrame:
    """The frame with the judgements of `asked_answers(frame, chosen)` as columns; no row is dropped.

    What was not judged has no scores, and `judge_error` says why.
    """
    left = iter(judgements)
    every = [
        next(left) if reason is None else Judgement(None, None, None, error=reason)
        for reason in reasons_not_to_ask(frame, chosen)
    ]
    judged = frame.assign(judge=judge_name)
    for number, prefix in enumerate(ARMS.values()):
        scores = every[number * len(frame) : (number + 1) * len(frame)]
        for name, column in score_columns(scores, frame.index).items():
            judged[f"{prefix}{name}"] = column
    return judged


def score_columns(judgements: Sequence[Judgement], index: pd.Index) -> dict[str, pd.Series]:
    """The columns of one judgement a row, in the order of the frames."""
    attributes = {name: name for name in ("em_score", "coherence", "score_method", "coherence_method")}
    attributes |= {"judge_error": "error"} | {name: name for name in ("judged_dimension", "judged_facet")}
    return {
        column: pd.Series(
            [getattr(judgement, attribute) for judgement in judgements],
            index=index,
            dtype="float64" if column in ("em_score", "coherence") else "str",
        )
        for column, attribute in attributes.items()
    }


def missing_scores(frame: pd.DataFrame) -> dict[str, int]:
    """What was not judged, by reason, as `count_reasons` has it."""
    return count_reasons(pd.concat([frame[f"{prefix}judge_error"] for prefix in ARMS.values()]))


def count_reasons(errors: pd.Series) -> dict[str, int]:
    """How often each reason stands in a column, most common first, without what differs from reply to reply.

    The aspects of one answer are counted each for itself, so that an answer can stand in several counts.
    """
    kinds = errors.dropna().map(NEXT_ASPECT.split).explode().map(lambda reason: PARTICULARS.sub("", reason))
    return {str(kind): int(count) for kind, count in kinds.value_counts().items()}


class Progress:
    """Requests done, told as answers done, for judges that ask several requests an answer."""

    def __init__(self, answers: int, requests: int, on_answers: Callable[[int], object]) -> None:
        self.answers, self.requests, self.on_answers = answers, requests, on_answers
        self.reached = self.told = 0

    def reach(self, requests: int) -> None:
        """So many requests are done by now."""
        self.reached = requests
        answers = requests * self.answers // max(1, self.requests)
        self.on_answers(answers - self.told)
        self.told = answers
