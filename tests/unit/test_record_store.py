"""What the store keeps through cuts, garbage, a second process and a full disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.record_store import open_store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "judgements.jsonl"


def write(path: Path, *values: int) -> None:
    with open_store(path) as store:
        for value in values:
            store.append({"key": f"k{value}", "value": value})


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with `path` and `open_store` at hand."""
    head = f"from pathlib import Path\nfrom src.utils.record_store import open_store\npath = Path({str(path)!r})\n"
    command = [sys.executable, "-c", head + code]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=240, check=False)


def test_what_was_appended_is_there_at_once_and_at_the_next_opening(path: Path) -> None:
    with open_store(path) as store:
        assert store.get("a") is None and store.records == {}
        store.append({"key": "a", "text": "zwei\nZeilen \u2028 🙂", "none": None})
        assert path.read_bytes().count(b"\n") == 1  # before the file is closed
        assert store.get("a") == {"key": "a", "text": "zwei\nZeilen \u2028 🙂", "none": None}
    with open_store(path) as store:
        assert store.get("a") == {"key": "a", "text": "zwei\nZeilen \u2028 🙂", "none": None}
        store.append({"key": "b"})
    assert [json.loads(line)["key"] for line in path.read_text().split("\n")[:-1]] == ["a", "b"]


def test_the_newest_record_of_a_key_counts(path: Path) -> None:
    with open_store(path) as store:
        store.append({"key": "a", "failure": "429"})
        store.append({"key": "b", "reply": 1})
        store.append({"key": "a", "reply": 2})
        assert store.get("a") == {"key": "a", "reply": 2}
    with open_store(path) as store:
        assert store.get("a") == {"key": "a", "reply": 2} and len(store.records) == 2
    assert path.read_bytes().count(b"\n") == 3


def test_a_record_that_was_appended_is_a_copy(path: Path) -> None:
    record = {"key": "a", "value": 1}
    with open_store(path) as store:
        store.append(record)
        record["value"] = 2
        assert store.get("a") == {"key": "a", "value": 1}


def test_a_last_line_cut_at_any_byte_is_dropped_and_the_rest_stays(path: Path) -> None:
    with open_store(path) as store:
        store.append({"key": "a"})
        whole = path.stat().st_size
        store.append({"key": "b", "text": "é"})
    content = path.read_bytes()
    for end in range(whole, len(content)):
        path.write_bytes(content[:end])
        with open_store(path) as store:
            assert list(store.records) == ["a"]
            store.append({"key": "c"})
        assert path.read_bytes() == content[:whole] + b'{"key": "c"}\n'


@pytest.mark.parametrize(
    "garbage", [b"\x00\x00\x00", b"{", b"[1]", b'"text"', b"5", b'{"value": 1}', b'{"key": ["a"]}', b"\xff\xfe", b" "]
)
def test_any_other_line_that_is_no_record_is_named_and_nothing_is_changed(path: Path, garbage: bytes) -> None:
    write(path, 0, 1, 2)
    lines = path.read_bytes().split(b"\n")
    damaged = b"\n".join([*lines[:2], garbage, *lines[2:]])
    path.write_bytes(damaged)
    with pytest.raises(UserError) as caught, open_store(path):
        pytest.fail("opened")
    assert f"{path}, line 3: no record; take the line out" in caught.value.message
    assert path.read_bytes() == damaged
    path.write_bytes(damaged.replace(garbage + b"\n", b""))  # the remedy
    with open_store(path) as store:
        assert len(store.records) == 3


def test_a_second_process_is_refused_and_admitted_when_the_first_is_done(path: Path) -> None:
    code = "with open_store(path) as store: store.append({'key': 'second'})"
    with open_store(path) as store:
        store.append({"key": "first"})
        refused = run(code, path)
        assert refused.returncode == 1 and "another run is writing it" in refused.stderr
        with pytest.raises(UserError, match="another run is writing it"), open_store(path):
            pytest.fail("opened twice")
    assert run(code, path).returncode == 0
    with open_store(path) as store:
        assert list(store.records) == ["first", "second"]


def test_a_killed_process_leaves_its_records_and_no_lock(path: Path) -> None:
    code = """
import os, signal
with open_store(path) as store:
    for number in range(100):
        store.append({"key": str(number)})
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert run(code, path).returncode == -9
    with open_store(path) as store:
        assert list(store.records) == [str(number) for number in range(100)]


@pytest.mark.parametrize("room", [0, 1, 10])
def test_a_full_disk_is_one_line_and_leaves_no_torn_line(path: Path, room: int) -> None:
    """A limit on the size of files is what a process can be given of a full disk: `room` bytes of the line go in."""
    write(path, 1, 2)
    before = path.read_bytes()
    code = f"""
import resource
from src.utils.errors import UserError
with open_store(path) as store:
    size, (_, hard) = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + {room}, hard))
    for _ in range(2):
        try:
            store.append({{"key": "k3", "text": "too long"}})
        except UserError as error:
            print(error.message)
        assert path.stat().st_size == size and store.get("k3") is None
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.append({{"key": "k4"}})
"""
    finished = run(code, path)
    assert finished.returncode == 0, finished.stderr
    messages = finished.stdout.splitlines()
    assert len(messages) == 2
    assert all(f"{path}: cannot be written" in message and "make room" in message for message in messages)
    assert path.read_bytes() == before + b'{"key": "k4"}\n'


def test_what_json_cannot_hold_is_not_written(path: Path) -> None:
    with open_store(path) as store:
        for value in (float("nan"), float("inf"), path, b"x"):
            with pytest.raises((ValueError, TypeError)):
                store.append({"key": "a", "value": value})
        assert store.get("a") is None
    assert path.read_bytes() == b""


def test_a_place_where_no_file_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "store.jsonl"):
        with pytest.raises(UserError, match="cannot be opened"), open_store(path):
            pytest.fail("opened")
