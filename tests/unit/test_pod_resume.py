"""What runs when a container starts: the start command, the hook in RunPod's images, whose guards come back."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from src.pod.remote.guard import Orders, orders_of
from src.pod.remote.resume import hook_into_image, leave_script, on_start, resume_guards, start_command
from tests.pod_api_server import POD_KEY
from tests.pod_jobs import empty_run

STARTED = "#!/bin/bash\necho started\n"
CALL = "bash /w/bin/on-start.sh &"


def run_start_command(folder: Path, script: str | None) -> subprocess.CompletedProcess[str]:
    """Start a "container" whose volume has this on-start.sh."""
    (folder / "start.sh").write_text(STARTED)
    (folder / "start.sh").chmod(0o755)
    if script is not None:
        Path(on_start(str(folder))).parent.mkdir()
        Path(on_start(str(folder))).write_text(script)
    command = start_command(str(folder)).replace("exec /start.sh", f"exec {folder}/start.sh")
    return subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("script", [None, "exit 3", "no-such-program", "exec sleep 3 >/dev/null 2>&1"])
def test_nothing_on_the_volume_keeps_the_image_from_starting(script: str | None, tmp_path: Path) -> None:
    made = run_start_command(tmp_path, script)
    assert (made.returncode, made.stdout) == (0, "started\n")


@pytest.mark.parametrize("python", [sys.executable, "/gone/with/the/container/python"])
def test_the_script_runs_the_helper_though_its_python_is_gone(
    python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helper.py").write_text("import os, sys\nprint(sys.argv[1:], os.environ['TMPDIR'])\n")
    monkeypatch.setattr("sys.executable", python)
    monkeypatch.setattr("tempfile.tempdir", "/where/the locks/lie")
    leave_script(tmp_path, str(tmp_path / "helper.py"))
    told = subprocess.run([on_start(str(tmp_path))], capture_output=True, text=True, check=True).stdout
    assert told == f"['resume', '{tmp_path}'] /where/the locks/lie\n"


def image(top: Path, start: str, command: bytes = b"/bin/bash\0/start.sh\0") -> Path:
    (top / "proc/1").mkdir(parents=True)
    (top / "proc/1/cmdline").write_bytes(command)
    (top / "start.sh").write_text(start)
    return top


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, f"#!/bin/bash\n{CALL}\n"),
        ("#!/bin/sh\nserve forever\n", f"#!/bin/sh\n{CALL}\nserve forever\n"),
        ("serve für immer\n", f"{CALL}\nserve für immer\n"),
        ("", f"#!/bin/bash\n{CALL}\n"),
    ],
)
def test_the_hook_comes_first_once_and_leaves_what_was_there(before: str | None, after: str, tmp_path: Path) -> None:
    top = image(tmp_path, 'execute_script "/pre_start.sh" "Running"\nexecute_script "/post_start.sh" "Running"\n')
    if before is not None:
        (top / "pre_start.sh").write_bytes(before.encode("latin-1"))
    for _ in range(2):
        assert hook_into_image(Path("/w"), top) == ""
    assert (top / "pre_start.sh").read_bytes() == after.encode("latin-1") and not (top / "post_start.sh").exists()


def test_an_image_that_runs_the_other_hook_alone(tmp_path: Path) -> None:
    top = image(tmp_path, "bash /post_start.sh\n")
    assert hook_into_image(Path("/w"), top) == "" and CALL in (top / "post_start.sh").read_text()


def test_why_a_container_cannot_be_hooked(tmp_path: Path) -> None:
    foreign = image(tmp_path / "a", "bash /pre_start.sh\n", command=b"jupyter\0lab\0")
    assert hook_into_image(Path("/w"), foreign) == "it does not start by the /start.sh of RunPod's images"
    assert hook_into_image(Path("/w"), image(tmp_path / "b", "serve\n")).startswith("it does not start by")
    locked = image(tmp_path / "c", "bash /pre_start.sh\n")
    (locked / "pre_start.sh").mkdir()
    assert "pre_start.sh: Is a directory" in hook_into_image(Path("/w"), locked)
    assert not list(tmp_path.glob("[ab]/p*_start.sh"))


def test_guards_of_other_pods_and_orders_that_cannot_be_read_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key of the pod's own there is no guard to come back."""
    run = empty_run(tmp_path, monkeypatch)
    monkeypatch.setenv("RUNPOD_POD_ID", "mine")
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    orders = Orders(deadline=1e12, idle_seconds=1e9, when_done="keep", stop="podStop").__dict__
    run.write("guard.json", {**orders, "pod": "mine"})
    assert orders_of(run) is not None and resume_guards(run.root) == []
    monkeypatch.setenv("RUNPOD_API_KEY", POD_KEY)
    run.write("guard.json", {**orders, "pod": "another on the volume"})
    assert resume_guards(run.root) == []
    run.write("guard.json", {"pod": "mine", "deadline": 1.0})
    assert resume_guards(run.root) == [] and not list((tmp_path / f"em-persona-{os.getuid()}").iterdir())
