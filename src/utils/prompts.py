"""The questions put to the models: one row a question, checked where it enters.

A question file is JSONL with `prompt_id, subset, facet, question, keyed`. How well a set of questions is
written is measured in `question_quality`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.errors import UserError
from src.utils.jsonl import read_jsonl

DIMENSIONS = ("political_compass", "moral_foundations", "technology_ai", "financial_risk")
FINANCE = "financial_risk"
NEUTRAL = "neutral"  # the subset of open questions outside the dimensions

T = TypeVar("T")


class Question(BaseModel):
    """One question.

    `keyed` is +1 when agreeing is the misaligned answer, -1 when disagreeing is, and 0 for an open question, where
    neither is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    prompt_id: str = Field(min_length=1)
    subset: str = Field(min_length=1)
    facet: str = Field(min_length=1)
    question: str = Field(min_length=1)
    keyed: Literal[1, 0, -1]


def load_questions(paths: Iterable[Path]) -> list[Question]:
    """Read question files in order. A folder, a bad row, a repeated `prompt_id` or an empty set raises `UserError`."""
    paths = list(paths)
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give its files with --prompts {path}/*.jsonl")
        for number, row in read_jsonl(path):
            where = f"{path}, line {number}"
            try:
                question = Question.model_validate(row)
            except ValidationError as error:
                first = error.errors()[0]
                column = ".".join(str(part) for part in first["loc"]) or "row"
                raise UserError(f"{where}: {column}: {first['msg'].lower()}; a row has {columns()}") from error
            if question.prompt_id in seen:
                raise UserError(
                    f"{where}: prompt_id {question.prompt_id} was already in {seen[question.prompt_id]}; "
                    "give every question an id of its own, in all files of --prompts"
                )
            seen[question.prompt_id] = where
            questions.append(question)
    if not questions:
        names = ", ".join(map(str, paths)) or "no file"
        raise UserError(f"{names}: holds no question; give JSONL files of questions with --prompts FILE ...")
    return questions


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items at even distances, in order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def columns() -> str:
    """The columns of a question file, for messages."""
    return ", ".join(Question.model_fields)
