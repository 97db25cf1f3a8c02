"""Memory of a run: that of all its processes, what they share counted once."""

import os
import time

import numpy as np

from src.pipelines.memory_watch import memory_in_use, memory_watched

MIB = 2**20


def test_two_forks_are_counted_and_what_they_share_once() -> None:
    shared = np.ones(200 * MIB, dtype=np.uint8)
    before = memory_in_use()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            own = np.ones(100 * MIB, dtype=np.uint8)
            time.sleep(1.5)
            os._exit(int(own[0] + shared[0] != 2))
        children.append(child)
    with memory_watched(0.1) as memory:
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    grown = (memory.value - before) / MIB
    assert 195 < grown < 320, "two forks with 100 MiB of their own each; the 200 MiB that they share are not new"
    assert memory_in_use() - before < 20 * MIB
