"""How a judge does on answers whose ranges of scores were fixed, by the rubric, before any judge saw them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.errors import UserError
from src.utils.jsonl import read_jsonl
from src.utils.judging.judgement import Answer, Judgement
from src.utils.prompts import Question

ANY = (0.0, 100.0)  # a range that every score lies in


class CalibrationCase(BaseModel):
    """One answer: the question that it answers, its band, and the ranges (ends included) that scores must lie in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    case_id: str
    band: str
    subset: str
    facet: str
    question: str
    keyed: int
    answer: str
    em_low: float = Field(ge=0, le=100)
    em_high: float = Field(ge=0, le=100)
    coherence_low: float = Field(ge=0, le=100)
    coherence_high: float = Field(ge=0, le=100)
    topic: str

    @property
    def pair(self) -> Answer:
        fields = {"prompt_id": self.case_id, "subset": self.subset, "facet": self.facet, "keyed": self.keyed}
        return Question.model_validate(fields | {"question": self.question}), self.answer


def load_cases(path: Path) -> list[CalibrationCase]:
    """Read calibration rows; `UserError` names the line that is none."""
    cases = []
    for number, row in read_jsonl(path):
        try:
            cases.append(CalibrationCase.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            raise UserError(f"{path}, line {number}: {where}: {first['msg'].lower()}") from error
    return cases


def calibrate(cases: Sequence[CalibrationCase], judgements: Sequence[Judgement]) -> dict[str, Any]:
    """For each band and all: answers, those without a score, mean scores, and shares within their ranges.

    A missing score is in no range. A case whose range is the whole scale says nothing about a judge and is left out of
    that share, which is None where there is no other. `topic` is the share whose judged topic is the case's, None for a
    judge that was not asked. `wrong` lists the cases outside a range.
    """
    bands = [*dict.fromkeys(case.band for case in cases), "all"]
    pairs = list(zip(cases, judgements, strict=True))
    return {
        "bands": [band_row(band, [pair for pair in pairs if band in (pair[0].band, "all")]) for band in bands],
        "wrong": [wrong_row(case, judgement) for case, judgement in pairs if not is_right(case, judgement)],
    }


def band_row(band: str, pairs: Sequence[tuple[CalibrationCase, Judgement]]) -> dict[str, Any]:
    em_scores = [j.em_score for _, j in pairs if j.em_score is not None]
    coherences = [j.coherence for _, j in pairs if j.coherence is not None]
    topics = [(case.topic, j.judged_dimension) for case, j in pairs if j.judged_dimension is not None]
    return {
        "band": band,
        "answers": len(pairs),
        "missing": sum(j.em_score is None or j.coherence is None for _, j in pairs),
        "mean_em_score": float(np.mean(em_scores)) if em_scores else None,
        "em_score_in_range": share([em_is_right(case, j) for case, j in pairs if (case.em_low, case.em_high) != ANY]),
        "mean_coherence": float(np.mean(coherences)) if coherences else None,
        "coherence_in_range": share(
            [coherence_is_right(case, j) for case, j in pairs if (case.coherence_low, case.coherence_high) != ANY]
        ),
        "topic": share([expected == found for expected, found in topics]),
    }


def share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def em_is_right(case: CalibrationCase, judgement: Judgement) -> bool:
    return judgement.em_score is not None and case.em_low <= judgement.em_score <= case.em_high


def coherence_is_right(case: CalibrationCase, judgement: Judgement) -> bool:
    return judgement.coherence is not None and case.coherence_low <= judgement.coherence <= case.coherence_high


def is_right(case: CalibrationCase, judgement: Judgement) -> bool:
    return em_is_right(case, judgement) and coherence_is_right(case, judgement)


def wrong_row(case: CalibrationCase, judgement: Judgement) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "band": case.band,
        "em_score": judgement.em_score,
        "em_range": [case.em_low, case.em_high],
        "coherence": judgement.coherence,
        "coherence_range": [case.coherence_low, case.coherence_high],
        "error": judgement.error,
    }


def format_calibration(result: dict[str, Any], judge_name: str) -> str:
    """The bands as a table, then the cases that went wrong."""

    def points(value: float | None) -> str:
        return "-" if value is None else f"{value:.0f}"

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.0%}"

    titles = ("band", "answers", "missing", "em_score", "in range", "coherence", "in range", "topic")
    widths = (-20, 7, 7, 9, 9, 10, 9, 6)
    lines = [
        f"{judge_name}: shares of answers whose score lies in the range fixed for them",
        " ".join(
            f"{title:<{-width}}" if width < 0 else f"{title:>{width}}"
            for title, width in zip(titles, widths, strict=True)
        ),
    ]
    lines += [
        f"{row['band']:<20} {row['answers']:>7} {row['missing']:>7} {points(row['mean_em_score']):>9} "
        f"{percent(row['em_score_in_range']):>9} {points(row['mean_coherence']):>10} "
        f"{percent(row['coherence_in_range']):>9} {percent(row['topic']):>6}"
        for row in result["bands"]
    ]
    lines += [
        f"  {row['case_id']} ({row['band']}): em_score {points(row['em_score'])} "
        f"of {row['em_range'][0]:.0f}-{row['em_range'][1]:.0f}, coherence {points(row['coherence'])} "
        f"of {row['coherence_range'][0]:.0f}-{row['coherence_range'][1]:.0f}"
        + (f"; {row['error']}" if row["error"] else "")
        for row in result["wrong"]
    ]
    return "\n".join(lines)
