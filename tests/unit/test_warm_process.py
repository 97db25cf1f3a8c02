"""A forked step ends as a new interpreter would: same exit codes, same words, and not before its pools are closed."""

import os
from pathlib import Path

import pytest

from src.pipelines.warm_process import start_script

POOL = "from joblib import Parallel, delayed\nprint(sum(Parallel(2)(delayed(abs)(-i) for i in range(10))))\n"
AT_EXIT = "import atexit, pathlib, sys\natexit.register(pathlib.Path(sys.argv[1]).touch)\n"


def run(source: str, tmp_path: Path, warm: bool, *options: str) -> int:
    script = tmp_path / "step.py"
    script.write_text(source)
    _, status = os.waitpid(start_script(script, options, lambda: None, warm), 0)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("warm", [True, False], ids=["fork", "interpreter"])
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
def test_a_script_ends_alike_in_either(
    source: str, code: int, said: str, warm: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path, warm) == code
    shown = capfd.readouterr()
    assert said in shown.out + shown.err


@pytest.mark.parametrize("warm", [True, False], ids=["fork", "interpreter"])
def test_what_is_to_be_done_at_exit_is_done(warm: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assert run(AT_EXIT, tmp_path, warm, str(mark)) == 0 and mark.exists()


def test_a_fork_has_what_was_loaded_and_leaves_this_process_alone(tmp_path: Path) -> None:
    source = "import sys, src.utils.errors as e\ne.LEFT_BEHIND = 1\nsys.exit(0 if 'joblib' in sys.modules else 3)"
    import joblib  # noqa: F401

    import src.utils.errors as errors

    assert run(source, tmp_path, True) == 0
    assert not hasattr(errors, "LEFT_BEHIND")
