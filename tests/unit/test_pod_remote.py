"""The pod's side without a pod: blocks and parts, states of a run, the supervisor, progress."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from src.pod.helper import helper_archive, helper_sha256
from src.pod.remote.blocks import BLOCK_BYTES, Digest, Part, Store, bytes_to_come, digest_file
from src.pod.remote.frames import END, GREETING, JSON, FrameError, Wire
from src.pod.remote.install import comes_with_torch
from src.pod.remote.layout import RunFolder, state_of
from src.pod.remote.progress import Progress, answer_tokens, read_bar
from src.pod.remote.supervisor import cancel, start
from src.pod.watch import explain
from src.utils.artifacts import write_tensors
from tests.pod_jobs import empty_run, job_spec
from tests.pod_server import wait_for


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    return empty_run(tmp_path, monkeypatch)


def ended(run: RunFolder) -> dict:
    wait_for(lambda: run.read("exit.json") and not run.is_locked(), "the job ends")
    return run.read("exit.json") or {}


def test_an_address_is_the_content_and_nothing_else(tmp_path: Path) -> None:
    data = os.urandom(2 * BLOCK_BYTES + 5)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data)
    (tmp_path / "c").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    a, b, c = (digest_file(tmp_path / name) for name in "abc")
    assert a == b and a.address == b.address != c.address
    assert len(a.blocks) == 3 and a.length_of(2) == 5 and Digest.from_json(json.loads(json.dumps(a.as_json()))) == a
    assert Digest(0, ()).address != Digest(1, ()).address
    for size, blocks in ((1 << 60, []), (1, ["a", "b"]), (-1, [])):  # would be a file of any size on the disk
        with pytest.raises(ValueError, match="blocks are no file of"):
            Digest.from_json({"size": size, "blocks": blocks})


def test_a_part_takes_right_blocks_only_and_remembers_them(tmp_path: Path) -> None:
    data = os.urandom(3 * BLOCK_BYTES - 7)
    (tmp_path / "a").write_bytes(data)
    digest = digest_file(tmp_path / "a")
    blocks = [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]
    store = Store(tmp_path / "store")
    part = store.part(digest)
    assert part.missing() == [0, 1, 2]
    assert not part.write(0, blocks[1]) and not part.write(7, blocks[0]) and not part.write(2, blocks[2] + b"\0")
    large = Part(tmp_path / "store/parts", Digest(5, (hashlib.sha256(data).hexdigest(),)))
    assert not large.write(0, data), "more than the file is said to be"
    assert part.write(2, blocks[2]) and part.write(0, blocks[0])
    assert part.size() >= len(blocks[0]) + len(blocks[2]) and bytes_to_come(store, [digest, digest]) <= len(blocks[1])
    part.close()
    again = Part(tmp_path / "store/parts", digest)
    assert again.missing() == [1] and not store.has(digest)
    assert again.write(1, blocks[1])
    store.keep(again)
    assert store.has(digest) and store.path(digest.address).read_bytes() == data
    assert not list((tmp_path / "store/parts").iterdir())
    store.put_into(digest.address, tmp_path / "work/x")
    (tmp_path / "work/x").write_bytes(b"changed")
    assert store.path(digest.address).read_bytes() == data, "what a job writes does not reach the store"


def test_frames_and_their_ends(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        wire = Wire(lambda count: b"", file.write)
        wire.write_json({"a": 1})
        wire.write(b".")
        wire.write(END)
    with (tmp_path / "f").open("rb") as file:
        wire = Wire(file.read, bytes)
        assert wire.read() == (JSON, b'{"a": 1}') and wire.read() == (END, b"") and wire.read() is None
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:7])
    with (tmp_path / "f").open("rb") as file, pytest.raises(FrameError, match="within a frame"):
        Wire(file.read, bytes).read()
    with pytest.raises(FrameError, match="is no frame"):
        Wire(lambda count: b"Welcome to the pod!"[:count], bytes).read()


def test_the_helper_is_the_same_bytes_for_the_same_code_and_runs_alone(tmp_path: Path) -> None:
    before = helper_sha256()
    helper_archive.cache_clear()
    assert helper_sha256() == before
    (tmp_path / "helper.pyz").write_bytes(helper_archive())
    wire_in = subprocess.run(
        [sys.executable, "-I", "helper.pyz", "serve", str(tmp_path)],
        cwd=tmp_path,
        input=b"",
        capture_output=True,
        check=True,
    )
    assert wire_in.stdout.startswith(GREETING + b"J")


def test_a_job_runs_detached_once_with_its_environment(run: RunFolder) -> None:
    source = "import os; print(os.environ['FROM_SPEC'], os.environ['SECRET'], os.getcwd(), os.getsid(0) == os.getpid())"
    state = start(run, job_spec(source), {"SECRET": "s"})
    assert state["state"] in ("running", "finished")
    assert ended(run)["code"] == 0
    assert run.log.read_text() == f"1 s {run.project} True\n"
    assert start(run, job_spec(source), {})["state"] == "finished", "this round of it is over"
    assert run.log.read_text().count("\n") == 1
    assert "SECRET" not in "".join(path.read_text() for path in run.path.glob("*.json"))
    start(run, job_spec("print('again')", number=2), {})
    assert ended(run)["round"] == 2 and run.log.read_text().endswith("again\n")


def test_a_job_that_is_running_is_not_started_twice(run: RunFolder) -> None:
    start(run, job_spec("import time; print('up', flush=True); time.sleep(120)"), {})
    wait_for(lambda: run.log.exists() and run.log.read_text() == "up\n", "the job runs")
    assert start(run, job_spec("print('twice')"), {})["state"] == "running"
    state = cancel(run)
    assert state["state"] == "cancelled" and state["exit"]["code"] == -15 and run.log.read_text() == "up\n"


def test_a_job_without_supervisor_dies_and_the_next_start_goes_on(run: RunFolder) -> None:
    """Kill -9 of the supervisor, as a container's end or the kernel's out-of-memory killer does it."""
    start(run, job_spec("import time; print('up', flush=True); time.sleep(120)"), {})
    wait_for(lambda: run.read("pid"), "the job runs")
    os.kill((run.read("pid") or {})["supervisor"], 9)
    wait_for(lambda: not run.is_locked(), "the job dies with it")
    assert state_of(run)["state"] == "interrupted"
    run.write("pid", {"supervisor": 1, "group": 1 << 30})  # numbers of a container that is gone
    assert start(run, job_spec("print('on')"), {})["started"]["attempts"] == 2
    assert (run.read("pid") or {}).get("group") != 1 << 30, "nothing is left that a cancellation could hit instead"
    assert ended(run)["code"] == 0 and run.log.read_text().endswith("on\n")


def test_a_job_that_a_spot_pods_end_asks_to_go_is_interrupted_not_failed(run: RunFolder) -> None:
    start(run, job_spec("import time; print('up', flush=True); time.sleep(120)"), {})
    wait_for(lambda: run.read("pid"), "the job runs")
    os.killpg((run.read("pid") or {})["group"], signal.SIGTERM)
    wait_for(lambda: not run.is_locked(), "the job is gone")
    assert state_of(run)["state"] == "interrupted"
    assert start(run, job_spec("print('on')"), {})["started"]["attempts"] == 2
    assert ended(run)["code"] == 0


def test_a_run_of_another_pod_is_left_alone_until_it_is_silent(run: RunFolder) -> None:
    run.write("started", {"pod": "other", "at": time.time(), "attempts": 1, "round": 1})
    run.write("status.json", {})
    assert start(run, job_spec("print(1)"), {})["state"] == "elsewhere"
    assert not run.log.exists()
    hour_ago = time.time() - 3600
    os.utime(run.path / "status.json", (hour_ago, hour_ago))
    assert start(run, job_spec("print(1)"), {})["state"] in ("running", "finished")
    assert ended(run)["code"] == 0


FILL = """
import os, sys
from pathlib import Path
from src.pod.remote.layout import RunFolder
from src.pod.remote.supervisor import start
import tempfile
tempfile.tempdir = sys.argv[2]
run = RunFolder(Path(sys.argv[1]), "run1")
run.project.mkdir(parents=True)
fill = "with open('big', 'wb') as file:\\n    while True: file.write(bytes(1 << 12)); file.flush()"
start(run, {"round": 1, "phases": {"run": [sys.executable, "-c", fill]}, "env": {}}, {})
while run.is_locked():
    pass
print((run.path / "exit.json").read_text(), os.statvfs(run.path).f_bavail)
"""


def test_a_job_that_fills_the_disk_has_failed_and_says_so(tmp_path: Path) -> None:
    """On a file system of 1 MB of its own."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mounts of one's own here")
    (tmp_path / "volume").mkdir()
    mounted = f'mount -t tmpfs -o size=1m tmpfs {tmp_path}/volume && exec "$@"'
    command = [*alone, "sh", "-c", mounted, "sh", sys.executable, "-c", FILL, f"{tmp_path}/volume", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    ended, free = told.rsplit(maxsplit=1)
    assert json.loads(ended)["code"] == 1 and int(free) * 4096 < 1 << 16


def test_a_failing_phase_is_the_last(run: RunFolder) -> None:
    phases = {
        "install": [sys.executable, "-c", "import sys; sys.exit(7)"],
        "run": [sys.executable, "-c", "print('no')"],
    }
    start(run, {"round": 1, "phases": phases, "env": {}}, {})
    assert (ended(run)["code"], ended(run)["phase"]) == (7, "install") and run.log.read_text() == ""
    start(run, {"round": 2, "phases": {"run": ["/no/such/program"]}, "env": {}}, {})
    assert ended(run)["code"] == 127 and "/no/such/program" in run.log.read_text()


def test_bars_of_tqdm_are_read_as_tqdm_writes_them(run: RunFolder) -> None:
    source = (
        "import time\nfrom tqdm import tqdm\nfor _ in tqdm(range(7), unit='answer', mininterval=0): time.sleep(0.02)"
    )
    start(run, job_spec(source), {})
    ended(run)
    found = Progress(run.log, run.project).sample()
    assert (found["done"], found["total"], found["unit"], found["eta_seconds"]) == (7, 7, "answer", 0)
    assert read_bar("ask:  24%|##  | 640/2655 [01:02<1:03:05,  9.41answer/s]") == {
        "done": 640,
        "total": 2655,
        "unit": "answer",
        "eta_seconds": 3785,
    }
    slow = read_bar("1/4 [00:10<00:30, 10.00s/it]")
    assert slow is not None and (slow["unit"], slow["eta_seconds"]) == ("it", 30)
    assert read_bar("nothing of the kind") is None


def test_tokens_are_counted_from_the_collectors_parts(run: RunFolder) -> None:
    folder = run.project / "results/persona_data.parts"
    folder.mkdir(parents=True)
    progress = Progress(run.log, run.project)
    for name, count in (("base-00000", 30), ("em-00000", 12), ("base_on_em-00000", 12)):
        write_tensors({"ids": np.zeros(count, np.int64), "x": np.zeros(3)}, folder / f"{name}.safetensors")
    found = progress.sample()
    assert found["tokens"] == 42 and found["tokens_per_second"] > 0
    (folder / "em-00001.safetensors").write_bytes(b"half of a fi")
    assert answer_tokens(folder / "em-00001.safetensors") == 0


def test_what_comes_with_torch_stays_the_pods() -> None:
    kept = ["torch==2.13.0", "nvidia-cublas-cu12==1", "triton==3.1"]
    assert all(comes_with_torch(line) for line in kept)
    assert not any(
        comes_with_torch(line) for line in ("torchmetrics==1", "numpy==2", "nvidiafoo==1", "transformers==5")
    )


@pytest.mark.parametrize(
    ("exit_file", "tail", "reason"),
    [
        ({"code": 1, "phase": "run"}, "a\nlast words\n", "exit code 1; last line: last words"),
        (
            {"code": -9, "is_out_of_memory": True},
            "1%|\r50%|half",
            "out of memory: killed by signal 9; lower --batch-size",
        ),
        ({"code": 2, "phase": "install"}, "", "the installation ended with exit code 2; last line: it said nothing"),
        ({"code": 1, "free_bytes": 0}, "x", "disk full on the pod: exit code 1"),
    ],
)
def test_reasons_in_one_line(exit_file: dict, tail: str, reason: str) -> None:
    assert reason in explain(exit_file, tail) and "\n" not in explain(exit_file, tail)
