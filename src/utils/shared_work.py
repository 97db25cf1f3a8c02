"""Work shared among processes of one thread each, for models that are too small to keep several cores busy.

Each process is a fork that writes the parts which are its rank's, as those that `accelerate launch` starts do. With one
thread each, what is computed depends neither on how many there are nor on how many cores the machine has.
"""

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

from src.utils.errors import UserError
from src.utils.ranks import Ranks

NVIDIA_DEVICE = Path("/dev/nvidiactl")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOPPED = 130  # by Ctrl-C, as in a shell
LONGEST = 600  # characters of a text that a process tells: lines of up to 4,096 bytes are written whole

OnRows = Callable[[int], object]  # told how many rows are done
Say = Callable[[str], object]
Work = Callable[[Ranks, OnRows, Say], object]


def can_fork() -> bool:
    """Whether a fork can do all that a new process can: not beside CUDA, nor with the frameworks of macOS."""
    return sys.platform == "linux" and not NVIDIA_DEVICE.exists()


def die_with_parent() -> None:
    """On Linux this process ends with the one that started it, even a killed one: no orphan writes beside the next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def share_out(processes: int, ranks: Ranks, work: Work, on_rows: OnRows, say: Say) -> None:
    """Run `work` as each of up to `processes` ranks, no more than there are cores, and tell what they tell.

    Where `ranks` already are several, where one process is asked for and where nothing can be forked, this process does
    the work itself. The work of a process that ends badly is left undone: its `UserError` is raised here, after the
    others have been stopped.
    """
    count = min(processes, len(os.sched_getaffinity(0))) if can_fork() else 1
    if ranks.count > 1 or count == 1:
        work(ranks, on_rows, say)
        return
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    children = [child for index in range(count) if (child := _fork(Ranks(index, count), work, reading, writing))]
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as told:
        try:
            _listen(told, on_rows, say)
        except BaseException:  # ended while somebody still listens: a process that tells nobody would say so
            _end(children)
            raise
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if STOPPED in codes or -signal.SIGINT in codes:
        raise KeyboardInterrupt
    if bad := next((code for code in codes if code), None):
        how = f"was killed by signal {-bad} (out of memory?)" if bad < 0 else f"ended with exit code {bad}"
        raise UserError(f"one of {count} processes {how}; the same command continues there, --processes 1 needs less")


def _fork(ranks: Ranks, work: Work, reading: int, writing: int) -> int:
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_child(ranks, work, writing)
    return child


def _run_child(ranks: Ranks, work: Work, writing: int) -> NoReturn:
    code = 1
    try:
        die_with_parent()
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        import torch

        torch.set_num_threads(1)

        def tell(**what: Any) -> None:
            os.write(writing, (json.dumps(what, ensure_ascii=False) + "\n").encode())

        try:
            work(ranks, lambda rows: tell(rows=rows), lambda text: tell(text=text[:LONGEST]))
            code = 0
        except UserError as error:
            tell(error=error.message[:LONGEST], exit_code=error.exit_code)
    except KeyboardInterrupt:
        code = STOPPED
    except BaseException:  # what an interpreter does with the exception that nobody caught
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _listen(told: IO[str], on_rows: OnRows, say: Say) -> None:
    """Pass on what the processes tell, until all have ended; the first `UserError` of one is raised."""
    for line in told:
        what = json.loads(line)
        if "rows" in what:
            on_rows(what["rows"])
        elif "text" in what:
            say(what["text"])
        else:
            raise UserError(what["error"], what["exit_code"])


def _end(children: list[int]) -> None:
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
