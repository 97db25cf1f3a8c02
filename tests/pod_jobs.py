"""A client of a pod on this machine, and jobs of a few lines for it to run there."""

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from src.pod.api import RunPodApi
from src.pod.client import Choices, PodClient
from src.pod.launch import Command, open_run
from src.pod.payload import Payload
from src.pod.persona_data_runner import attend
from src.pod.remote.layout import RunFolder
from src.pod.run_record import RunRecord, RunRecords, now
from src.pod.settings import PodSettings
from tests.pod_api_server import ACCOUNT_KEY, ApiServer
from tests.pod_server import PodServer

HUB_TOKEN = "hf_SECRETTOKEN000111222"  # pragma: allowlist secret
SLEEPY = "import time\nprint('asleep', flush=True)\ntime.sleep(60)\n"
QUICK = "open('out', 'w').close()\n"


def empty_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run's folder on a volume in `folder`, which is the place for temporary files, too."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    one = RunFolder(folder / "volume", "run1")
    one.project.mkdir(parents=True)
    return one


def job_spec(source: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    """What a supervisor is told of a job that runs a few lines."""
    return {"round": number, "phases": {"run": [sys.executable, "-c", source]}, "env": {"FROM_SPEC": "1"}, **fields}


def client_for(pod: PodServer, api: ApiServer, folder: Path, **fields: Any) -> PodClient:
    """A client whose home is `folder`. `fields` are those of `Choices`, `PodSettings` and `PodClient`."""
    parts: list[dict[str, Any]] = [
        {name: fields.pop(name) for name in list(fields) if name in kind.__dataclass_fields__}
        for kind in (Choices, PodSettings, PodClient)
    ]
    choices: dict[str, Any] = {
        "remote_python": sys.executable,
        "installs": False,
        "is_guarded": False,
        "pod_poll": 0.05,
        **parts[0],
    }
    settings: dict[str, Any] = {"key": pod.key, "remote_root": str(pod.root), **parts[1]}
    own: dict[str, Any] = {"say": lambda text: None, "pins": folder / "pins", **parts[2]}
    assert not fields, fields
    return PodClient(
        RunPodApi(api.url, ACCOUNT_KEY, wait=lambda seconds: None),
        PodSettings(api_key=ACCOUNT_KEY, api_url=api.url, user=getpass.getuser(), **settings),
        RunRecords(folder / "results/runs"),
        Choices(**choices),
        **own,
    )


def run_record(run_id: str = "collect-1", **fields: Any) -> RunRecord:
    """The record of a run that has not begun."""
    values = {"step": "collect", "script": "s.py", "options": ["--limit", "3"], "pod_id": "p", "created": now()}
    values |= {"remote_root": "/w", "remote_folder": f"/w/runs/{run_id}", "outputs": ["results/x"]}
    return RunRecord.model_validate({**values, "run_id": run_id, **fields})


def job_command(
    folder: Path, source: str, files: dict[str, Path] | None = None, options: Sequence[str] = ()
) -> Command:
    """A command that runs a few lines of Python in the run's working folder; `out` is what it leaves."""
    script = folder / "job.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(source)
    payload = Payload("job.py", list(options), {"job.py": script, **(files or {})}, ["out"])
    return Command("script", "job.py", list(options), ["out"], lambda: payload)


def attend_to(client: PodClient, command: Command, folder: Path, is_detached: bool = False) -> RunRecord:
    """What the runner does with a command, from its record to the fetched results; the record at the end."""
    record = open_run(client, command)
    own = argparse.Namespace(detach=is_detached, results_dir=folder / "results", force=False)
    attend(client, record, own, command)
    return client.records.load(record.run_id)


def guarded(pod: PodServer, api: ApiServer, folder: Path, source: str = SLEEPY, **choices: Any) -> RunRecord:
    """The record of a run that was started with a guard and left."""
    client = client_for(pod, api, folder, is_guarded=True, **choices)
    return attend_to(client, job_command(folder, source), folder, is_detached=True)


def remote(pod: PodServer, record: RunRecord) -> RunFolder:
    """The folder of a run on the pod."""
    return RunFolder(pod.root, record.run_id)
