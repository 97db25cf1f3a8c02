"""The job on the pod: one detached supervisor runs its phases, keeps its log, and writes down how it ended.

A job that was interrupted (a spot pod taken away, a container restarted) has no exit file; the next start runs it again
in the same folder, where it continues from its own shards.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from src.pod.remote.detach import detach, die_with_parent
from src.pod.remote.environment import pod_name
from src.pod.remote.layout import RunFolder, state_of
from src.pod.remote.progress import Progress

POLL_SECONDS = 0.1
STATUS_SECONDS = 2.0
KILL_AFTER_SECONDS = 10.0
RESERVE, RESERVE_BYTES = "reserve", 1 << 16  # room for the exit file


def start(run: RunFolder, spec: dict[str, Any], secrets: dict[str, str]) -> dict[str, Any]:
    """Start the run's job unless it is running or this round of it has ended; the state after that.

    `spec`: `round` (1, 2, ... counted by the client's retries of a failed run), `phases` (name -> argv), `env`,
    `takes_over` (whether a run that another pod was writing a moment ago may be started: that pod is gone). `secrets`
    go into the job's environment and nowhere else.
    """
    before = state_of(run)
    if before["state"] == "running" or (before["state"] == "elsewhere" and not spec.get("takes_over")):
        return before
    lock = run.lock()
    if lock is None:
        return state_of(run)
    try:
        ended = run.read("exit.json")
        if ended is None or int(ended["round"]) < int(spec["round"]):
            for name in ("exit.json", "cancelled", "fetched", "pid"):
                if (run.path / name).exists():
                    (run.path / name).unlink()
            attempts = int((run.read("started") or {}).get("attempts", 0)) + 1
            (run.path / RESERVE).write_bytes(bytes(RESERVE_BYTES))
            run.write("started", {"pod": pod_name(), "at": time.time(), "attempts": attempts, "round": spec["round"]})
            detach(lambda: supervise(run, spec, secrets, lock), run.path / "supervisor.log")
    finally:
        os.close(lock)
    return state_of(run)


def supervise(run: RunFolder, spec: dict[str, Any], secrets: dict[str, str], lock: int) -> None:
    """Run the phases one after another, until one fails or the run is cancelled.

    A job that somebody else ends by SIGTERM, as the end of a spot pod does, is interrupted: it has no exit file.
    """
    killed_before = oom_kills()
    code, phase = 0, ""
    for phase, argv in spec["phases"].items():
        if (run.path / "cancelled").exists():
            break
        code = run_phase(run, phase, argv, {**spec.get("env", {}), **secrets}, lock)
        if code != 0:
            break
    if code == -signal.SIGTERM and not (run.path / "cancelled").exists():
        return
    write_exit(
        run,
        {
            "code": code,
            "phase": phase,
            "round": spec["round"],
            "cancelled": (run.path / "cancelled").exists(),
            "is_out_of_memory": code != 0 and oom_kills() > killed_before,
            "free_bytes": free_bytes(run.path),
            "at": time.time(),
        },
    )


def write_exit(run: RunFolder, ended: dict[str, Any]) -> None:
    """How the job ended; a job that has filled the disk left room for that."""
    try:
        run.write("exit.json", ended)
    except OSError:
        (run.path / RESERVE).unlink()
        run.write("exit.json", ended)


def run_phase(run: RunFolder, phase: str, argv: list[str], env: dict[str, str], lock: int) -> int:
    """One process in a group of its own; its exit code, negative for a signal as `subprocess` has it."""
    progress = Progress(run.log, run.project)
    with run.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                argv,
                cwd=str(run.project),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
                preexec_fn=die_with_parent,  # noqa: PLW1509  # the supervisor has one thread
            )
        except OSError as error:
            log.write((f"error: {argv[0]}: {error.strerror}\n").encode())
            return 127
    run.write("pid", {"supervisor": os.getpid(), "group": process.pid, "phase": phase})
    written = 0.0
    while process.poll() is None:
        if time.time() - written >= STATUS_SECONDS:
            write_status(run, phase, progress)
            written = time.time()
        time.sleep(POLL_SECONDS)
    write_status(run, phase, progress)
    return process.returncode


def write_status(run: RunFolder, phase: str, progress: Progress) -> None:
    try:
        run.write("status.json", {"phase": phase, "at": time.time(), **progress.sample()})
    except Exception:  # a full disk is the job's to report, and nothing here is worth the job
        return


def cancel(run: RunFolder) -> dict[str, Any]:
    """Ask the job to end (SIGTERM), then make it (SIGKILL), or give up one that has failed; the state after that."""
    ended = run.read("exit.json")
    if not run.path.exists() or (ended is not None and ended.get("code") == 0):
        return state_of(run)
    run.touch("cancelled")
    if ended is not None:
        run.write("exit.json", {**ended, "cancelled": True})
    deadline = time.time() + KILL_AFTER_SECONDS
    while run.is_locked() and time.time() < deadline + 5:
        running = run.read("pid")
        if running is not None:
            signal_group(int(running["group"]), signal.SIGTERM if time.time() < deadline else signal.SIGKILL)
        time.sleep(0.2)
    if not run.is_locked() and run.read("exit.json") is None:
        run.write("exit.json", {"code": -15, "phase": "", "round": 1 << 30, "cancelled": True, "at": time.time()})
    return state_of(run)


def signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def oom_kills() -> int:
    """How often the kernel has killed a process of this container for memory (cgroup v2, then v1)."""
    for file in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            lines = Path(file).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def free_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
