"""Forks that share work: each part done once, by a process of one thread; how they end, together and one by one.

Each case runs in an interpreter of its own, as the scripts do: a fork of the tests' process would have the locks of its
threads.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from src.utils.config import PROJECT_ROOT
from src.utils.shared_work import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are shared out on Linux without a GPU")

SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from src.utils.cli import run_script
from src.utils.errors import UserError
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.shared_work import share_out

os.sched_getaffinity = lambda pid: range(3)
folder = Path(sys.argv[1])
torch.ones(500, 500) @ torch.ones(500, 500)  # the threads of the process that forks


def work(ranks, on_rows, say):
    (folder / f"rank-{ranks.index}").write_text(f"{os.getpid()} {ranks.count} {torch.get_num_threads()}")
    for part in range(7):
        if ranks.owns(part):
            DOES
            with (folder / f"part-{part}").open("a") as file:
                file.write(str(float((torch.ones(300, 300) @ torch.ones(300, 300)).sum())))
            on_rows(part)
    say(f"rank {ranks.index} is done")


def main(arguments):
    rows, said = [], []
    share_out(int(arguments[1]), RUN_ALONE, work, rows.append, said.append)
    print(os.getpid(), sorted(rows), sorted(said))


run_script(main, sys.argv[1:])
"""


def start(folder: Path, processes: int, does: str = "pass") -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SCRIPT.replace("DOES", does), str(folder), str(processes)]
    return subprocess.Popen(words, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=120)
    return process.returncode, out.strip(), error.strip()


def workers(folder: Path) -> list[list[int]]:
    return [[int(word) for word in file.read_text().split()] for file in sorted(folder.glob("rank-*"))]


def are_gone(folder: Path) -> bool:
    """Whether its processes have ended, those included that nobody buries."""
    pids = [pid for pid, _, _ in workers(folder) if psutil.pid_exists(pid)]
    return all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.parametrize(("processes", "count"), [(1, 1), (2, 2), (8, 3)])
def test_every_part_is_done_once_by_no_more_processes_than_cores(processes: int, count: int, tmp_path: Path) -> None:
    code, out, error = ended(start(tmp_path, processes))
    assert (code, error) == (0, "")
    assert {file.name: file.read_text() for file in tmp_path.glob("part-*")} == {
        f"part-{part}": str(300.0**3) for part in range(7)
    }
    found = workers(tmp_path)
    pids = {pid for pid, _, _ in found}
    assert len(pids) == count and (str(pids) == f"{{{out.split()[0]}}}") == (count == 1)
    assert count == 1 or all(rest == [count, 1] for _, *rest in found), "one thread each"
    said = [f"rank {index} is done" for index in range(count)]
    assert out.partition(" ")[2] == f"{list(range(7))} {said}"


def test_what_a_user_can_mend_ends_the_others_and_is_one_line(tmp_path: Path) -> None:
    does = "if part == 1: raise UserError('mend it', 2)\n            if part != 1: time.sleep(60)"
    assert ended(start(tmp_path, 2, does)) == (2, "", "error: mend it")
    assert are_gone(tmp_path)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code, out, error = ended(start(tmp_path, 2, "if part == 1: 1 / 0"))
    assert (code, out) == (1, "") and "ZeroDivisionError" in error
    assert error.splitlines()[-1].startswith("error: one of 2 processes ended with exit code 1; the same command")


def test_a_process_that_is_killed_is_told_and_the_others_finish(tmp_path: Path) -> None:
    code, _, error = ended(start(tmp_path, 2, "if part == 1: os.kill(os.getpid(), 9)"))
    assert code == 1 and "one of 2 processes was killed by signal 9" in error
    assert {file.name for file in tmp_path.glob("part-*")} == {f"part-{part}" for part in (0, 2, 4, 6)}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["Ctrl-C", "kill -9"])
def test_no_process_outlives_the_one_that_started_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    process = start(tmp_path, 2, "time.sleep(60)")
    wait_until(lambda: len([worker for worker in workers(tmp_path) if len(worker) == 3]) == 2, "both have started")
    os.kill(process.pid, number)
    ending, _, error = ended(process)
    assert ending == code and "Traceback" not in error
    wait_until(lambda: are_gone(tmp_path), "the processes have ended")
