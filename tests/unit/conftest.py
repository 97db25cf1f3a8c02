"""The generation script as its tests share it: into a folder of the test's own, with a server in place of models."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.generation_script import Run, isolate, script_runner, use_server
from tests.llm_server import LlmServer


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path / "generated", monkeypatch)


@pytest.fixture
def script(generated: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    return script_runner(capfd)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[LlmServer], None]:
    return partial(use_server, monkeypatch)
