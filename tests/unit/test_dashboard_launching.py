"""A training started from the dashboard: nothing but allow-listed options, and only its own process is ever stopped."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from src.dashboard.launching import (
    LOG,
    RECORD,
    LaunchRecord,
    find_process,
    launch,
    launches_in,
    log_tail,
    read_record,
    shown_command,
    state_of,
    stop,
    training_command,
)
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError

SLEEP = ["-c", "import time; print('started', flush=True); time.sleep(60)"]
WITH_CHILD = [
    "-c",
    """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
""",
]


def wait_until(is_true, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_command_names_what_differs_from_the_profile_and_nothing_else(tmp_path: Path) -> None:
    values = {"--num_epochs": 7, "--batch_size": 32, "--learning_rate": 2e-4, "--visualize_during_training": True}
    command = training_command("organism", "my-run.2", tmp_path, values, ["--force"])
    assert command == [
        *("src/train_safety_judge.py", "--profile", "organism", "--output_dir", str(tmp_path / "my-run.2")),
        *("--num_epochs", "7", "--learning_rate", "0.0002", "--visualize_during_training", "--force"),
    ]
    assert shlex.split(shown_command(command)) == ["uv", "run", "python", *command]
    assert "--output_dir outputs/a " in shown_command(
        training_command("organism", "a", PROJECT_ROOT / "outputs", {"--num_epochs": 1})
    )


def test_the_script_itself_takes_the_command(tmp_path: Path) -> None:
    from src.utils.safety_judge.arguments import parse_judge_arguments

    values = {"--num_epochs": 7, "--learning_rate": 2e-4, "--seed": 3, "--freeze_layers": 1, "--run_advanced_mi": True}
    values |= {"--visualize_during_training": True, "--visualization_interval": 2, "--batch_size": 5}
    command = training_command("organism", "a", tmp_path, values)
    names = ("num_epochs", "learning_rate", "seed", "freeze_layers", "batch_size")
    keys = [f"training.{name}" for name in names]
    keys += [f"watching.{name}" for name in ("visualize_during_training", "visualization_interval", "run_advanced_mi")]
    config = parse_judge_arguments("", keys, command[1:]).config
    assert {name: getattr(config.training, name) for name in names} == {name: values[f"--{name}"] for name in names}
    given = {"visualize_during_training": True, "visualization_interval": 2, "run_advanced_mi": True}
    assert given.items() <= config.watching.model_dump().items()


@pytest.mark.parametrize(
    "given",
    [
        ("organism", "../../etc", {}, ()),
        ("organism", "a b; rm -rf x", {}, ()),
        ("organism", ".hidden", {}, ()),
        ("organism", "", {}, ()),
        ("organism", "--force", {}, ()),
        ("organism", "a", {"--config": "/tmp/evil.yaml"}, ()),
        ("organism", "a", {"--base_model": "x"}, ()),
        ("organism", "a", {}, ("--output_dir=/",)),
        ("organism", "a", {"--num_epochs": 0}, ()),
        ("organism", "a", {"--num_epochs": "5; true"}, ()),
        ("nobody", "a", {}, ()),
    ],
)
def test_what_is_not_offered_is_refused(given: tuple, tmp_path: Path) -> None:
    profile, folder, values, flags = given
    with pytest.raises(UserError) as refused:
        training_command(profile, folder, tmp_path, values, flags)
    assert refused.value.exit_code == 2


def test_a_launch_is_recorded_logged_and_stopped_with_its_children(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    record = launch(WITH_CHILD, folder)
    assert read_record(folder) == record
    assert record.started == psutil.Process(record.pid).create_time()
    assert os.getsid(record.pid) == record.pid
    wait_until(lambda: log_tail(folder / LOG).strip().isdigit())
    child = psutil.Process(int(log_tail(folder / LOG)))
    assert state_of(record) == "running"
    with pytest.raises(UserError, match="still runs"):
        launch(SLEEP, folder)
    assert stop(record)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: state_of(read_record(folder)) == "stopped")
    ended = read_record(folder)
    assert ended is not None and ended.exit_code == -signal.SIGTERM
    assert launches_in(tmp_path) == [folder]


def test_the_end_of_a_training_is_recorded(tmp_path: Path) -> None:
    for code, state in ((0, "finished"), (3, "failed")):
        launch(["-c", f"raise SystemExit({code})"], tmp_path)
        wait_until(lambda: state_of(read_record(tmp_path)) == state)  # noqa: B023


def test_another_process_with_a_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, *SLEEP], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        started = psutil.Process(other.pid).create_time()
        forged = LaunchRecord(pid=other.pid, started=started - 100, command=["x"])
        assert state_of(forged) == "ended"
        assert not stop(forged)
        assert other.poll() is None
        assert not stop(LaunchRecord(pid=os.getpid(), started=psutil.Process().create_time() + 50, command=["x"]))
        assert not stop(LaunchRecord(pid=2**40, started=started, command=["x"]))
    finally:
        other.kill()
        other.wait()


def test_a_process_that_leads_no_session_is_never_stopped() -> None:
    other = subprocess.Popen([sys.executable, *SLEEP], stdout=subprocess.DEVNULL)
    try:
        record = LaunchRecord(pid=other.pid, started=psutil.Process(other.pid).create_time(), command=["x"])
        assert not stop(record)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_training_outlives_the_dashboard_and_is_stopped_by_the_next(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from src.dashboard.launching import launch; "
        f"launch({SLEEP!r}, Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
    record = read_record(tmp_path)
    assert record is not None
    assert state_of(record) == "running"
    assert stop(record)
    assert find_process(record) is None
    assert state_of(read_record(tmp_path)) == "ended"


def test_a_damaged_record_is_said_and_a_log_ends_where_it_ends(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert log_tail(tmp_path / LOG) == ""
    (tmp_path / RECORD).write_text('{"pid": 1')
    with pytest.raises(UserError, match="no record of a launch"):
        read_record(tmp_path)
    (tmp_path / RECORD).write_text(json.dumps({"pid": 1, "started": 0.0, "command": [], "shell": "rm"}))
    with pytest.raises(UserError, match="no record of a launch"):
        read_record(tmp_path)
    (tmp_path / LOG).write_bytes(
        b"\xff\n" + b"\n".join(f"line {i}".encode() for i in range(5000)) + b"\n 1%\r 50%\r100%\n"
    )
    tail = log_tail(tmp_path / LOG, lines=3)
    assert tail.split("\n") == ["line 4998", "line 4999", "100%"]
