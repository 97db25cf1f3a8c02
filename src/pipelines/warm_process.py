"""Steps as forks of one process that has loaded the libraries once.

Loading torch, transformers and peft takes longer than several of the organism's steps. A fork still is a process of its
own: it gives its memory back, is measured alone, and is killed alone.
"""

import atexit
import importlib
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

# What the steps import, heaviest first; each loads its libraries without starting a thread or touching a device.
SHARED = (
    "src.utils.collection",
    "src.utils.finetuning",
    "src.utils.steering_grid",
    "src.utils.decomposition.geometry_report",
    "src.visualizations.clusters_visualizations",
)
COULD_NOT_START = 126  # as in a shell


def load_libraries() -> None:
    """Import what the steps share; a second call costs nothing."""
    for name in SHARED:
        importlib.import_module(name)


def start_script(script: Path, options: Sequence[str], prepare: Callable[[], None], warm: bool) -> int:
    """Start a script after `prepare`; returns its process's id.

    A warm one runs in a fork, with the libraries that this process has loaded; another one in a new interpreter.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0 and warm:
        run_as_main(script, options, prepare)
    if child == 0:
        try:
            prepare()
            os.execv(sys.executable, [sys.executable, str(script), *options])
        finally:
            os._exit(COULD_NOT_START)
    return child


def run_as_main(script: Path, options: Sequence[str], prepare: Callable[[], None]) -> NoReturn:
    """Run a script as the main module of this process, and end the process with its exit code."""
    code = 1
    try:
        prepare()
        sys.argv = [str(script), *options]
        sys.path[0] = str(script.parent)
        runpy.run_path(str(script), run_name="__main__")
        code = 0
    except SystemExit as exit_:
        code = exit_code(exit_)
    except BaseException:  # what an interpreter does with the exception that nobody caught
        traceback.print_exc()
    finally:
        # as at the end of any interpreter: pools of workers are closed first
        threading._shutdown()  # ty: ignore[missing-attribute]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(exit_: SystemExit) -> int:
    """The exit code that the interpreter would end with; a message is printed, as it would do."""
    if exit_.code is None:
        return 0
    if isinstance(exit_.code, int):
        return exit_.code
    print(exit_.code, file=sys.stderr)
    return 1
