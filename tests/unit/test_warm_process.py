"""A forked step ends as a new interpreter would: same exit codes, same words, and not before its pools are closed.

Each is started by an interpreter of its own, as the runner's is: a fork of the tests' process would have the pools that
earlier tests left there, without their threads.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT

RUNNER = """
import os, sys
from pathlib import Path
import joblib
from src.pipelines.warm_process import start_script
from src.utils import errors
child = start_script(Path(sys.argv[1]), sys.argv[3:], lambda: None, sys.argv[2] == "fork")
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print("ended with", code, "and left something behind" * hasattr(errors, "LEFT_BEHIND"))
"""
POOL = "from joblib import Parallel, delayed\nprint(sum(Parallel(2)(delayed(abs)(-i) for i in range(10))))\n"
AT_EXIT = "import atexit, pathlib, sys\natexit.register(pathlib.Path(sys.argv[1]).touch)\n"
KINDS = ("fork", "interpreter")


def run(source: str, tmp_path: Path, kind: str, *options: str) -> tuple[str, str]:
    """What a script printed, and how it ended."""
    script = tmp_path / "step.py"
    script.write_text(source)
    words = [sys.executable, "-c", RUNNER, str(script), kind, *options]
    done = subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True, timeout=300)
    shown, _, end = done.stdout.rpartition("ended with ")
    return shown + done.stderr, end.strip()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("print(__name__)", 0, "__main__"),
        (POOL, 0, "45"),
        ("raise SystemExit(2)", 2, ""),
        ("import sys\nsys.exit('broken: mend it')", 1, "broken: mend it"),
        ("raise ValueError('nobody caught this')", 1, "ValueError: nobody caught this"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", -9, ""),
        ("import sys, pathlib\nprint(sys.path[0] == str(pathlib.Path(__file__).parent), sys.argv[1:])", 0, "True []"),
    ],
    ids=["main", "pool", "code", "message", "exception", "killed", "path"],
)
def test_a_script_ends_alike_in_either(source: str, code: int, said: str, kind: str, tmp_path: Path) -> None:
    shown, end = run(source, tmp_path, kind)
    assert end == str(code) and said in shown


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_to_be_done_at_exit_is_done(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert run(AT_EXIT, tmp_path, kind, str(mark)) == ("", "0") and mark.exists()


def test_a_fork_has_what_was_loaded_and_leaves_its_parent_alone(tmp_path: Path) -> None:
    source = "import sys, src.utils.errors as e\ne.LEFT_BEHIND = 1\nsys.exit(0 if 'joblib' in sys.modules else 3)"
    assert run(source, tmp_path, "fork") == ("", "0")
