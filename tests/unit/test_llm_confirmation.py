"""The question before a paid run: who is asked, and what counts as yes."""

import io
import os
import sys
from pathlib import Path

import pytest

from src.utils.errors import UserError
from src.utils.llm.confirmation import confirm


def confirm_on_terminal(typed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask on a real terminal into which somebody has typed this."""
    master, slave = os.openpty()
    try:
        with os.fdopen(slave) as terminal:
            os.write(master, typed)
            monkeypatch.setattr(sys, "stdin", terminal)
            confirm("3 requests, about $0.10", "some/model", yes=False)
    finally:
        os.close(master)


@pytest.mark.parametrize("typed", [b"y\n", b" YES \n"])
def test_yes_starts(typed: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    confirm_on_terminal(typed, monkeypatch)
    assert "some/model: 3 requests, about $0.10" in capsys.readouterr().out


@pytest.mark.parametrize("typed", [b"n\n", b"\n", b"yesterday\n", b"\x04"])  # the last is Ctrl-D
def test_anything_else_does_not(typed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="not confirmed; nothing was done") as caught:
        confirm_on_terminal(typed, monkeypatch)
    assert caught.value.exit_code == 1


def test_nobody_there_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match="--yes") as caught:
        confirm("3 requests", "some/model", yes=False)
    assert caught.value.exit_code == 2
    assert "3 requests" in capsys.readouterr().out


def test_yes_beforehand_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "empty").open("w+") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        confirm("3 requests", "some/model", yes=True)
