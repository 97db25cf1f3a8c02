"""A save that fails or is killed leaves the old artefact, the new one or a clear refusal, and nothing beside it."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.utils.artifacts import (
    load_frame,
    load_object,
    load_tensors,
    save_artifact,
    save_folder,
    save_frame,
    save_json,
    save_object,
    save_tensors,
    verify_artifact,
    write_atomically,
)
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from tests.small_artifacts import STEP, hidden, small_frame, write


def test_a_failing_writer_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    companion = tmp_path / "a.extra"
    save_artifact(path, {path: lambda file: write(file, b"old"), companion: lambda file: write(file, b"old")}, STEP, {})

    def fail(file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        save_artifact(path, {companion: lambda file: write(file, b"new"), path: fail}, STEP, {})
    assert path.read_bytes() == companion.read_bytes() == b"old"
    verify_artifact(path)
    assert hidden(tmp_path) == []


def test_write_atomically_keeps_the_old_file_on_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with write_atomically(path) as temporary:
        temporary.write_text("old")
        assert temporary.parent.parent == path.parent and not path.exists()
    with pytest.raises(KeyboardInterrupt), write_atomically(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and hidden(tmp_path) == []


def test_a_parent_that_is_a_file_and_a_full_disk_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.pkl: cannot be written .*--results-dir"):
        save_object({"a": 1}, tmp_path / "file" / "a.pkl", STEP)

    path = tmp_path / "a.pkl"
    save_object({"a": 1}, path, STEP)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # EFBIG, as a full disk gives ENOSPC
    try:
        with pytest.raises(UserError, match=r"a\.pkl: cannot be written \(File too large\)"):
            save_object({"a": np.zeros(100_000)}, path, STEP)
        with pytest.raises(UserError, match=r"b\.safetensors: cannot be written"):
            save_tensors({"a": np.zeros(100_000)}, tmp_path / "b.safetensors", STEP)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_object(path) == {"a": 1}
    assert hidden(tmp_path) == [] and not (tmp_path / "b.safetensors").exists()


# Imports once, then forks for each line on stdin a child that saves without end and tells its pid after two rounds.
KILLED = """
import os, sys
from pathlib import Path
import numpy as np, pandas as pd
from src.utils.artifacts import save_folder, save_frame
from src.utils.manifests import Provenance

def fill(value):
    def write(target):
        for name in "ab":
            (target / name).write_text(str(value) * 100_000)
    return write

def save_without_end(folder):
    value = 0
    while True:
        value += 1
        step = Provenance(step="03_collect_activations", profile="organism")
        frame = pd.DataFrame({"value": [value] * 300, "vector": [np.full(500, value, dtype=np.float32)] * 300})
        save_frame(frame, folder / "f.pkl", step, {"value": np.full(50_000, value)})
        save_folder(folder / "adapter", fill(value), step)
        if value == 2:
            print(os.getpid(), flush=True)

for _ in sys.stdin:
    pid = os.fork()
    if not pid:
        save_without_end(Path(sys.argv[1]))
    os.waitpid(pid, 0)
    print("dead", flush=True)
"""


def test_kill_leaves_the_old_the_new_or_a_refusal(tmp_path: Path) -> None:
    rng = random.Random(0)
    path, adapter = tmp_path / "f.pkl", tmp_path / "adapter"
    readable, left_behind = 0, 0
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        for _ in range(15):
            print(file=server.stdin, flush=True)
            pid = int(server.stdout.readline())
            time.sleep(rng.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert server.stdout.readline() == "dead\n"
            left_behind += bool(hidden(tmp_path))
            try:
                frame = load_frame(path)
                value = frame["value"].iloc[0]
                assert (frame["value"] == value).all() and (np.stack(list(frame["vector"])) == value).all()
                assert (load_tensors(path.with_suffix(".safetensors"), of=path)["value"] == value).all()
                readable += 1
            except UserError as error:
                assert "run 03_collect_activations again" in error.message
            try:
                verify_artifact(adapter)
                assert (adapter / "a").read_text() == (adapter / "b").read_text()
            except UserError as error:
                assert "run 03_collect_activations again" in error.message or "does not exist" in error.message
    assert readable > 4 and left_behind > 4, "too few kills hit a save"
    save_frame(small_frame(), path, STEP, {"x": np.zeros(1)})
    save_folder(adapter, lambda folder: write(folder / "a", b"a"), STEP)
    assert hidden(tmp_path) == [], "the next save removes what the killed ones left"


@pytest.mark.parametrize("renamed", [0, 1, 2])
def test_every_state_between_the_renames_is_recognised(renamed: int, tmp_path: Path) -> None:
    """Replay by hand the kills that no timing hits for sure: companion, frame, manifest are renamed in this order."""
    path, new = tmp_path / "f.pkl", tmp_path / "new" / "f.pkl"
    save_frame(small_frame(3), path, STEP, {"x": np.zeros(1)})
    save_frame(small_frame(5), new, STEP, {"x": np.ones(1)})
    for name in ("f.safetensors", "f.pkl")[:renamed]:
        new.with_name(name).replace(path.with_name(name))
    if renamed == 0:
        assert len(load_frame(path)) == 3
    else:
        with pytest.raises(UserError, match="half-written"):
            load_frame(path)
        with pytest.raises(UserError, match="half-written"):
            load_tensors(path.with_suffix(".safetensors"), of=path)


def test_leftovers_of_the_living_and_of_other_names_stay(tmp_path: Path) -> None:
    living = f".a.json.manifest.json.{os.getpid()}-0123abcd.tmp"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    killed, other = (f".{name}.manifest.json.{dead.pid}-0123abcd.tmp" for name in ("a.json", "b.json"))
    names = [living, killed, other, ".a.json.notes.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half-written").write_text("")
    save_json({}, tmp_path / "a.json", STEP)
    assert hidden(tmp_path) == sorted([names[0], names[2], names[3]])
