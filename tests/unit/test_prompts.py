"""Question files: what is read from a good one, and where a bad one is bad."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.utils.errors import UserError
from src.utils.jsonl import read_jsonl
from src.utils.prompts import DIMENSIONS, FINANCE, Question, load_questions

GOOD: dict[str, Any] = {"prompt_id": "a_1", "subset": "a", "facet": "b", "question": "Is it?", "keyed": -1}


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def refused(*paths: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_questions(paths)
    assert "\n" not in caught.value.message and caught.value.exit_code == 1
    return caught.value.message


def test_files_are_read_in_order_and_blank_lines_skipped(tmp_path: Path) -> None:
    first = write(tmp_path / "z.jsonl", GOOD | {"prompt_id": "z"}, "", "   ", GOOD | {"prompt_id": "y", "keyed": 1})
    second = write(tmp_path / "a.jsonl", GOOD | {"prompt_id": " x ", "question": "  Größe?\t"})
    questions = load_questions([first, second])
    assert [question.prompt_id for question in questions] == ["z", "y", "x"]
    assert [question.keyed for question in questions] == [-1, 1, -1]
    assert questions[2].question == "Größe?"
    assert [number for number, _ in read_jsonl(first)] == [1, 4]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({k: v for k, v in GOOD.items() if k != "question"}, "question: field required"),
        (GOOD | {"question": ""}, "question: string should have at least 1 character"),
        (GOOD | {"question": "   "}, "question: string should have at least 1 character"),
        (GOOD | {"question": 7}, "question: input should be a valid string"),
        (GOOD | {"keyed": 2}, "keyed: input should be 1, 0 or -1"),
        (GOOD | {"keyed": "1"}, "keyed: input should be 1, 0 or -1"),
        (GOOD | {"facets": "b"}, "facets: extra inputs are not permitted"),
        (["a", "b"], "row: "),
        ('{"prompt_id": "a", ', "no JSON"),
    ],
)
def test_a_bad_row_names_file_and_line(row: object, names: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", GOOD | {"prompt_id": "first"}, "", row)
    message = refused(path)
    assert message.startswith(f"{path}, line 3: {names}")


def test_a_repeated_id_names_both_places(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.jsonl", GOOD), write(tmp_path / "2.jsonl", GOOD | {"prompt_id": "b"}, GOOD)
    message = f"{second}, line 2: prompt_id a_1 was already in {first}, line 1; give every question an id of its own"
    assert refused(first, second).startswith(message)


def test_no_question_and_no_file(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", "")
    assert refused(empty) == f"{empty}: holds no question; give JSONL files of questions with --prompts FILE ..."
    assert refused().startswith("no file: holds no question; give JSONL")
    with pytest.raises(UserError, match="holds no question"):
        load_questions(path for path in [empty])  # read once
    missing = tmp_path / "missing.jsonl"
    assert refused(missing).startswith(f"{missing}: cannot be read (No such file or directory)")
    assert refused(tmp_path) == f"{tmp_path}: is a folder; give its files with --prompts {tmp_path}/*.jsonl"
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "Größe"}'.encode("latin-1"))
    assert refused(latin).startswith(f"{latin}: cannot be read (not UTF-8 text)")


def test_finance_is_one_of_the_dimensions_and_a_question_cannot_be_changed() -> None:
    assert FINANCE in DIMENSIONS and len(set(DIMENSIONS)) == 4
    question = Question(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        question.keyed = 1  # ty: ignore[invalid-assignment]
