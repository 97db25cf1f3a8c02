"""Processes that outlive the SSH session which starts them."""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def detach(work: Callable[[], object], errors: Path) -> None:
    """Run `work` in a process of its own session, without the caller's terminal, pipes or parent; returns at once.

    Open file descriptors other than the standard three are inherited (a lock held by the caller stays held).
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        silence = os.open(os.devnull, os.O_RDWR)
        try:
            complaints = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:  # a full disk is no reason not to work
            complaints = silence
        os.dup2(silence, 0)
        os.dup2(complaints, 1)
        os.dup2(complaints, 2)
        work()
        code = 0
    except BaseException:  # nobody is left who could catch it
        traceback.print_exc()
    finally:
        os._exit(code)


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent ends (prctl(2)): no job runs without its supervisor."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
