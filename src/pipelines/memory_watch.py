"""How much memory a run takes: this process and all that it started, looked at while they work."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import psutil

SECONDS_BETWEEN = 0.5
PAUSES = 30  # times as long as counting what is shared took, which is 0.1 s a gigabyte


@dataclass
class MemoryPeak:
    """The most bytes that were in use at once; what rises and falls between two looks is not seen."""

    value: int = 0


@contextlib.contextmanager
def memory_watched(seconds_between: float = SECONDS_BETWEEN) -> Generator[MemoryPeak]:
    """Look at this process and its descendants until the block ends.

    To be entered after a fork: the looking is done by a thread, and a fork of a process with threads may lock up.
    """
    peak, stop = MemoryPeak(), threading.Event()

    def watch() -> None:
        largest, pause = 0, seconds_between
        while True:
            resident = sum(measured(lambda process: process.memory_info().rss))
            if resident > largest:  # else the shared pages have been counted at least as high
                largest, started = resident, time.perf_counter()
                peak.value = max(peak.value, memory_in_use())
                pause = max(seconds_between, PAUSES * (time.perf_counter() - started))
            if stop.wait(pause):
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def memory_in_use() -> int:
    """Bytes that this process and its descendants hold, pages that they share counted once (proportional set size).

    Where the system does not tell what is shared (macOS), shared pages are left out.
    """

    def proportional(process: psutil.Process) -> int:
        usage = process.memory_full_info()
        return getattr(usage, "pss", usage.uss)

    return sum(measured(proportional))


def measured(measure: Callable[[psutil.Process], int]) -> Iterator[int]:
    """A measure of this process and each of its descendants."""
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or not ours to look at
            yield measure(process)
