"""A training started from the dashboard: its command, its process, its end.

The command is a list of arguments made of options that are named here, each checked by the judge's own configuration;
no text of a user is ever read by a shell. The process outlives the dashboard. Only what was recorded here is stopped,
and only while pid and start time both still fit, so that a pid that the system gave to another process is left alone.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from src.utils.atomic_writes import write_atomically
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.safety_judge.settings import load_judge_config

SCRIPT = "src/train_safety_judge.py"
RECORD, LOG = "dashboard_launch.json", "dashboard_launch.log"
FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SAME_START = 1.0  # seconds; the start time of a process is read back to a hundredth
TAIL_BYTES = 20_000

State = Literal["running", "finished", "stopped", "failed", "ended"]


@dataclass(frozen=True)
class LaunchOption:
    """An option that the start panel offers; `key` is the config key that checks its value."""

    name: str
    key: str
    help: str


OPTIONS = (
    LaunchOption("--num_epochs", "training.num_epochs", "epochs"),
    LaunchOption("--batch_size", "training.batch_size", "prompts at once"),
    LaunchOption("--learning_rate", "training.learning_rate", "learning rate"),
    LaunchOption("--freeze_layers", "training.freeze_layers", "first blocks that do not learn"),
    LaunchOption("--seed", "training.seed", "seed"),
    LaunchOption("--visualization_interval", "watching.visualization_interval", "epochs between pictures"),
    LaunchOption("--visualize_during_training", "watching.visualize_during_training", "draw pictures"),
    LaunchOption("--run_advanced_mi", "watching.run_advanced_mi", "neurons and circuits too"),
)
FLAGS = ("--resume", "--force")


class LaunchRecord(BaseModel):
    """What was started: `started` is the process's start time in seconds since 1970, as the system has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    started: float
    command: list[str]
    exit_code: int | None = None


def training_command(
    profile: str, folder_name: str, outputs: Path, values: Mapping[str, Any], flags: Sequence[str] = ()
) -> list[str]:
    """The arguments after the interpreter. Values equal to the profile's own are left out.

    Raises `UserError` for an option that is not offered, a value that the configuration refuses and a folder name with
    anything but letters, digits, `_`, `-` and `.`.
    """
    known = {option.name: option for option in OPTIONS}
    unknown = [name for name in (*values, *flags) if name not in known and name not in FLAGS]
    if unknown:
        raise UserError(f"option {unknown[0]}: is not one that the dashboard passes on; run {SCRIPT} by hand", 2)
    if not FOLDER_NAME.fullmatch(folder_name):
        raise UserError(
            f"folder {folder_name!r}: letters, digits, _, - and . only, a letter or digit first; choose another", 2
        )
    own = load_judge_config(profile)
    config = load_judge_config(profile, {known[name].key: value for name, value in values.items()})
    command = [SCRIPT, "--profile", config.profile, "--output_dir", str(outputs / folder_name)]
    for option in OPTIONS:
        section, name = option.key.split(".")
        value, default = getattr(getattr(config, section), name), getattr(getattr(own, section), name)
        if option.name in values and value != default:
            is_off = value is False
            command += [f"--no-{option.name[2:]}" if is_off else option.name]
            command += [] if isinstance(value, bool) else [str(value)]
    return [*command, *(flag for flag in FLAGS if flag in flags)]


def shown_command(command: Sequence[str]) -> str:
    """The same as a user types it, paths under the repository relative to it."""
    root = f"{PROJECT_ROOT}/"
    return shlex.join(["uv", "run", "python", *(word.removeprefix(root) for word in command)])


def launch(command: Sequence[str], output_dir: Path) -> LaunchRecord:
    """Start it in a session of its own, its output in `dashboard_launch.log`, and record it.

    Raises `UserError` while a training that was started here still runs in that folder.
    """
    if state_of(read_record(output_dir)) == "running":
        raise UserError(f"{output_dir}: a training started here still runs; stop it, or choose another folder")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with (output_dir / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                cwd=PROJECT_ROOT, start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"{output_dir}: cannot be written ({error.strerror}); choose another folder") from error
    try:
        record = LaunchRecord(pid=process.pid, started=psutil.Process(process.pid).create_time(), command=[*command])
        save_record(record, output_dir)
    except BaseException:  # what cannot be recorded could never be stopped
        process.kill()
        process.wait()
        raise
    threading.Thread(target=wait_for, args=(process, record, output_dir), daemon=True).start()
    return record


def wait_for(process: subprocess.Popen[bytes], record: LaunchRecord, output_dir: Path) -> None:
    """Add the exit code to the record, unless another training has taken its place; nobody does if we end first."""
    code = process.wait()
    with contextlib.suppress(UserError):
        if read_record(output_dir) == record:
            save_record(record.model_copy(update={"exit_code": code}), output_dir)


def stop(record: LaunchRecord, patience: float = 10.0) -> bool:
    """End a recorded training and what it started, first politely; False if it no longer runs.

    `patience` is in seconds. Only a process that leads its own session, with the recorded pid and start time, is
    touched: `launch` makes no other.
    """
    if find_process(record) is None or not leads_its_session(record.pid):
        return False
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signum)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if find_process(record) is None:
                return True
            time.sleep(0.05)
    return find_process(record) is None


def leads_its_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def find_process(record: LaunchRecord) -> psutil.Process | None:
    """The recorded process while it runs; None for another of that pid, and for one that only waits to be buried."""
    try:
        process = psutil.Process(record.pid)
        is_same = abs(process.create_time() - record.started) < SAME_START
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError, OverflowError):
        return None


def state_of(record: LaunchRecord | None) -> State | None:
    """Whether it runs and how it ended; `ended` where the dashboard was not there to see how. None without a record."""
    if record is None:
        return None
    if record.exit_code is not None:
        if record.exit_code == -signal.SIGTERM:
            return "stopped"
        return "finished" if record.exit_code == 0 else "failed"
    return "running" if find_process(record) is not None else "ended"


def read_record(output_dir: Path) -> LaunchRecord | None:
    """The last launch into a folder, None if there was none; a damaged record raises `UserError`."""
    path = output_dir / RECORD
    try:
        return LaunchRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: no record of a launch; remove it once nothing runs there") from error


def save_record(record: LaunchRecord, output_dir: Path) -> None:
    with write_atomically(output_dir / RECORD) as temporary:
        temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def launches_in(outputs: Path) -> list[Path]:
    """The folders in which a training was started, the last one first."""
    found = [path.parent for path in outputs.glob(f"*/{RECORD}")]
    return sorted(found, key=lambda folder: -(folder / RECORD).stat().st_mtime_ns)


def log_tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; what a progress bar wrote over itself is left out. Empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")[-lines - 1 :]).strip("\n")
