"""The generation script as tests run it: the real one, in this process, into a folder of the test's own."""

import json
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from src.utils.cli import run_script
from src.utils.config import PROJECT_ROOT
from tests.llm_server import KEY, LlmServer

SCRIPT = PROJECT_ROOT / "src" / "scripts" / "01_generate_dataset.py"
KEY_VARIABLES = ("OPENROUTER_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY")
SPECS = PROJECT_ROOT / "configs" / "generation"


@dataclass
class Result:
    """What a run of the script came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


def isolate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`folder` in place of data/generated; no key is set."""
    monkeypatch.setattr("src.utils.dataset_generation.files.GENERATED", folder)
    for name in KEY_VARIABLES:
        monkeypatch.setenv(name, "")  # set, so that a .env says nothing
    return folder


def script_runner(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process; what it says has neither key nor traceback."""
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(*words: str) -> Result:
        with pytest.raises(SystemExit) as caught:
            run_script(main, words)
        code = caught.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        assert KEY not in out + err
        assert "Traceback" not in err
        return Result(code, out, err)

    return run


def use_server(monkeypatch: pytest.MonkeyPatch, server: LlmServer) -> None:
    """Give the script a key and the server's address."""
    monkeypatch.setenv("OPENROUTER_API_KEY", KEY)
    monkeypatch.setenv("OPENROUTER_BASE_URL", server.openrouter_url)


def account_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "account.json").read_text())


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "replies.jsonl").read_text().splitlines()]


def set_files(folder: Path) -> dict[str, bytes]:
    """The files of a set, without the manifest, which holds times."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if "manifest" not in file.name}


def has_key(folder: Path) -> bool:
    return any(KEY.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())
