"""Labelled prompts: what a file may hold, and that no split leaks into another."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from src.utils.errors import UserError
from src.utils.safety_judge.data import load_data, split_published
from src.utils.safety_judge.published import LoadedSet
from src.utils.safety_judge.samples import SafetySample, check_splits, load_samples, load_splits

ROW = {"sample_id": "a1", "prompt": " How? ", "label": "unsafe", "category": "x", "source": "written", "style": "terse"}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_is_read_with_unsafe_as_the_positive_class(tmp_path: Path) -> None:
    paired = ROW | {"sample_id": "a2", "label": "safe", "pair_id": "p"}
    rows = (ROW, paired, paired | {"sample_id": "a3", "group_id": "g"})
    first, second, third = load_samples(write(tmp_path / "x.jsonl", *rows))
    assert first == SafetySample("a1", "How?", True, "x", "written", None)
    assert (second.unsafe, second.label) == (False, "safe")
    assert [one.group for one in (first, second, third)] == ["a1", "p", "g"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"label": "harmful"}, "label"), ({"prompt": "  "}, "prompt"), ({"category": None}, "category")],
)
def test_a_bad_row_is_named_by_file_line_and_field(change: dict, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW | {"sample_id": "a2"} | change)
    with pytest.raises(UserError) as caught:
        load_samples(path)
    assert caught.value.message.startswith(f"{path}, line 2: {said}")


def test_a_sample_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a1 stands twice"):
        load_samples(write(tmp_path / "x.jsonl", ROW, ROW))


def sample(number: int, **changes: object) -> SafetySample:
    return replace(SafetySample(f"s{number}", f"prompt {number}", number % 2 == 0, "x", "written", None), **changes)


def split_files(folder: Path, **extra: dict) -> Path:
    for start, name in enumerate(("train", "validation", "test")):
        rows = [
            ROW | {"sample_id": f"{name}{i}", "prompt": f"{start} {i}", "label": ("safe", "unsafe")[i]} for i in (0, 1)
        ]
        write(folder / f"{name}.jsonl", *rows, *([extra[name]] if name in extra else []))
    return folder


@pytest.mark.parametrize(
    "leak",
    [
        {"sample_id": "z", "prompt": "  0   1 "},
        {"sample_id": "train1", "prompt": "another"},
        {"sample_id": "z", "prompt": "another", "pair_id": "p"},
        {"sample_id": "z", "prompt": "another", "group_id": "g"},
    ],
)
def test_a_prompt_a_sample_a_pair_or_a_group_in_two_splits_is_a_leak(leak: dict, tmp_path: Path) -> None:
    train = ROW | {"sample_id": "q", "prompt": "q", "pair_id": "p", "group_id": "g"}
    with pytest.raises(UserError, match="must not leak"):
        load_splits(split_files(tmp_path, train=train, test=ROW | leak))
    assert len(load_splits(split_files(tmp_path, train=train)).train) == 3


def test_a_split_of_one_class_is_refused(tmp_path: Path) -> None:
    folder = split_files(tmp_path)
    write(folder / "test.jsonl", ROW)
    with pytest.raises(UserError, match="test has only unsafe"):
        load_splits(folder)


def test_published_splits_are_kept_and_a_test_prompt_is_in_no_other() -> None:
    train = tuple(sample(i) for i in range(200))
    test = (*(sample(i, sample_id=f"t{i}") for i in range(3)), sample(1000))
    data = split_published(LoadedSet({"train": train, "test": test}, 0))
    assert [one.sample_id for one in data.test] == ["t0", "t1", "t2", "s1000"]
    assert {one.prompt for one in data.train} | {one.prompt for one in data.validation} == {
        f"prompt {i}" for i in range(3, 200)
    }
    assert 0.08 < len(data.validation) / 197 < 0.25
    check_splits(data, "published")


def test_a_set_without_splits_is_split_by_its_prompts_alone() -> None:
    forwards = split_published(LoadedSet({None: tuple(sample(i) for i in range(400))}, 0))
    backwards = split_published(LoadedSet({None: tuple(sample(i) for i in reversed(range(400)))}, 0))
    for split in ("train", "validation", "test"):
        assert set(forwards.split(split)) == set(backwards.split(split))
    assert 0.6 < len(forwards.train) / 400 < 0.8


def test_sets_are_put_together_and_an_unknown_one_is_a_usage_error(tmp_path: Path) -> None:
    folder = split_files(tmp_path)
    both = load_data([str(folder), "world"])
    assert len(both.test) == 2 + len(load_data(["world"]).test)
    assert len(load_data([str(folder), str(folder)]).train) == 2, "the same prompt counts once"
    with pytest.raises(UserError, match="toxicchat") as caught:
        load_data(["no-such-set"])
    assert caught.value.exit_code == 2
