"""Memory of a run: that of all its processes, what they share counted once."""

import subprocess
import sys

from src.utils.config import PROJECT_ROOT

TWO_FORKS = """
import os
import time
import numpy as np
from src.pipelines.memory_watch import memory_in_use, memory_watched

MIB = 2**20
shared = np.ones(200 * MIB, dtype=np.uint8)
before = memory_in_use()
reading, writing = os.pipe()
for _ in range(2):
    if os.fork() == 0:
        os.close(writing)
        own = np.ones(100 * MIB, dtype=np.uint8)
        os.read(reading, 1)  # until the parent has closed its end
        os._exit(int(own[0] + shared[0] != 2))
with memory_watched(0.05) as memory:
    while memory.value - before < 195 * MIB:
        time.sleep(0.05)
    os.close(writing)
    codes = [os.wait()[1] for _ in range(2)]
print(codes, (memory.value - before) // MIB < 320, (memory_in_use() - before) // MIB < 20)
"""


def test_two_forks_are_counted_and_what_they_share_once() -> None:
    """100 MiB of their own each; the 200 MiB that they share are not new. It is not pytest's process that is forked."""
    command = [sys.executable, "-c", TWO_FORKS]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[0, 0] True True\n", done.stdout + done.stderr
