"""Where things lie on the pod, and what the files there say about a run.

    <root>/store/                 uploads by content
    <root>/runs/<run_id>/project/ the project as uploaded; the job's working folder
    <root>/runs/<run_id>/log, exit.json, status.json, pid, started, fetched, cancelled, guard.json, guard.log

The root should be on the volume. Locks, and when a client last asked for something, lie in the container's own /tmp,
where they end with the container.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.pod.remote.environment import pod_name

STALE_SECONDS = 60.0  # after which a run that another pod was writing is taken to be nobody's
CLIENT_SECONDS = 20.0  # of silence after which a client is taken to be gone
LOCK_TRIES, LOCK_WAIT = 10, 0.02


@dataclass(frozen=True)
class RunFolder:
    """One run's folder on the pod."""

    root: Path
    run_id: str

    @property
    def path(self) -> Path:
        return self.root / "runs" / self.run_id

    @property
    def project(self) -> Path:
        return self.path / "project"

    @property
    def log(self) -> Path:
        return self.path / "log"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the run; None if it is not there. They are written whole or not at all."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def write(self, name: str, value: dict[str, Any]) -> None:
        write_json(self.path / name, value)

    def touch(self, name: str) -> None:
        """Make an empty file, or its time now; a full disk has room for that."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / name).touch()

    def contact(self) -> None:
        """A client has just asked for something of this run, on this pod."""
        with contextlib.suppress(OSError):
            self.lock_path("contact").touch()

    def age(self, name: str) -> float | None:
        """Seconds since a file of the run was written; None if it is not there."""
        try:
            return time.time() - (self.path / name).stat().st_mtime
        except FileNotFoundError:
            return None

    @property
    def has_ended(self) -> bool:
        """Whether its job is over: done, failed or cancelled."""
        return self.read("exit.json") is not None and not self.is_locked()

    @property
    def is_interrupted(self) -> bool:
        """Whether its job was started and is gone without having ended."""
        return (self.path / "started").exists() and not self.is_locked() and self.read("exit.json") is None

    @property
    def is_over(self) -> bool:
        """Whether nothing of its job goes on."""
        return self.has_ended or self.is_interrupted

    @property
    def is_settled(self) -> bool:
        """Whether the pod holds nothing of it that anybody waits for."""
        return (self.path / "fetched").exists() or (self.path / "cancelled").exists()

    def lock(self, name: str = "job") -> int | None:
        """A lock that a process and its children hold until the last of them ends; None if it is taken.

        One who only looks (`is_locked`) has it for an instant: that is waited for.
        """
        file = os.open(self.lock_path(name), os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(LOCK_TRIES):
            if try_lock(file, fcntl.LOCK_EX):
                return file
            time.sleep(LOCK_WAIT)
        os.close(file)
        return None

    def is_locked(self, name: str = "job") -> bool:
        file = os.open(self.lock_path(name), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            return not try_lock(file, fcntl.LOCK_SH)  # shared: two who look are not in each other's way
        finally:
            os.close(file)

    def lock_path(self, name: str) -> Path:
        return lock_folder() / (f"{self.run_id}.{name}")


def try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_folder() -> Path:
    """This user's folder of locks on this machine."""
    folder = Path(tempfile.gettempdir()) / f"em-persona-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def state_of(run: RunFolder) -> dict[str, Any]:
    """What is known of a run: its state, how it ended, how far its log goes, its last status.

    States: absent, placed, running, interrupted (its processes are gone without having ended),
    elsewhere (another pod on the same volume was writing within the last minute), finished, failed, cancelled.
    """
    is_running = run.is_locked()  # first: a job that lets go of its lock has written how it ended
    ended, started, status = run.read("exit.json"), run.read("started"), run.read("status.json")
    if not run.path.exists():
        state = "absent"
    elif is_running:
        state = "running"
    elif ended is not None:
        state = "cancelled" if ended.get("cancelled") else "finished" if ended.get("code") == 0 else "failed"
    elif started is None:
        state = "placed"
    elif started.get("pod") != pod_name() and (run.age("status.json") or STALE_SECONDS) < STALE_SECONDS:
        state = "elsewhere"
    else:
        state = "interrupted"
    return {
        "state": state,
        "exit": ended,
        "started": started,
        "status": status,
        "log_bytes": run.log.stat().st_size if run.log.exists() else 0,
        "guard": run.read("guard.json"),
        "is_guarded": run.is_locked("guard"),
        "fetched": (run.path / "fetched").exists(),
        "others": [other.run_id for other in others_in_need(run)],
    }


def last_contact() -> float:
    """When a client last asked this pod for something of any run, in seconds since the epoch; 0 for never."""
    return max((path.stat().st_mtime for path in lock_folder().glob("*.contact")), default=0.0)


def runs_on_pod(root: Path) -> list[RunFolder]:
    """Every run that a client has asked this container about."""
    return [RunFolder(root, name) for name in sorted({path.stem for path in lock_folder().iterdir()})]


def others_in_need(run: RunFolder) -> list[RunFolder]:
    """Other runs that a stopped pod would interrupt."""
    return [other for other in runs_on_pod(run.root) if other != run and needs_pod(other)]


def needs_pod(run: RunFolder) -> bool:
    """Whether a run's job is running, or it is brought, tried again or fetched: its guard, or a client, is there.

    (A client whose run has failed is gone; a guard leaves time for another try.)
    """
    if run.is_locked():
        return True
    if run.is_settled:
        return False
    is_hopeful = (run.read("exit.json") or {}).get("code", 0) == 0
    return run.is_locked("guard") or (is_hopeful and time.time() - contact_time(run) < CLIENT_SECONDS)


def contact_time(run: RunFolder) -> float:
    """When a client last asked this pod for something of a run, in seconds since the epoch; 0 for never."""
    try:
        return run.lock_path("contact").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def unfetched_others(run: RunFolder) -> list[str]:
    """Other runs on this volume that have done some work, finished or not, of which nothing was fetched."""
    others = [RunFolder(run.root, path.name) for path in sorted((run.root / "runs").glob("*")) if path != run.path]
    return [other.run_id for other in others if (other.path / "started").exists() and not other.is_settled]
