"""Progress in a log: few lines, each whole, and the last one says that all is done."""

import io
import sys

import pytest

from src.pod.remote.progress import read_bar
from src.utils import progress
from src.utils.progress import progress_bar


def test_a_log_gets_the_first_and_the_last_state_and_none_of_a_thousand_quick_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar("fine-tune", "step", 1000) as bar:
        for number in range(1000):
            bar.set_postfix(loss=f"{number}", refresh=False)
            bar.update()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2 and "\r" not in log.getvalue()
    assert "0/1000" in lines[0] and "1000/1000" in lines[1] and "loss=999" in lines[1]
    found = read_bar(log.getvalue())
    assert found is not None and (found["done"], found["total"], found["unit"]) == (1000, 1000, "step")


def test_a_log_of_slow_steps_gets_a_line_each_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    with progress_bar("cluster", "k", 3) as bar:
        for _ in range(3):
            bar.update()
    shown = log.getvalue().splitlines()
    assert all(f"{done}/3" in line for done, line in enumerate(shown[:4])) and len(shown) >= 4


def test_a_hidden_bar_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar("ask", "answer", 3, is_hidden=True) as bar:
        bar.update(3)
    assert log.getvalue() == ""
