"""Dependencies on the pod, installed with the real uv: at the client's versions, around the pod's own torch."""

import os
import subprocess
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from src.pod.remote.install import InstallError, environment_folder, install, python_of
from tests.pod_api_server import ApiServer, pod_entry
from tests.pod_jobs import attend_to, client_for, job_command
from tests.pod_server import PodServer
from tests.system.conftest import require_program

CHOSEN = ("packaging", "torch")  # one that is installed, and one that must be the pod's own


@pytest.fixture(scope="module", autouse=True)
def _uv(tmp_path_factory: pytest.TempPathFactory) -> None:
    """uv, and a place from which it can install; without either there is nothing to test.

    Minutes, and whatever the package index makes of them: only where POD_INSTALLS is set.
    """
    if not os.environ.get("POD_INSTALLS"):
        pytest.skip("installs whole environments; POD_INSTALLS=1 runs it")
    uv = require_program("uv", "uv")
    target = tmp_path_factory.mktemp("probe")
    probe = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        f"packaging=={version('packaging')}",
    ]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("no package index here")


def pins() -> list[str]:
    return [f"{name}=={version(name).partition('+')[0]}" for name in CHOSEN]


@pytest.fixture
def pod(tmp_path: Path, sshd: str) -> Iterator[tuple[PodServer, ApiServer]]:
    with ApiServer() as api, PodServer(tmp_path / "pod", sshd, api_url=api.url) as server:
        api.pods = {"pod1": pod_entry("pod1", server.port)}
        yield server, api


SOURCE = """
import os, sys, importlib.metadata as metadata, importlib.util as util
print(sys.prefix)
print(util.find_spec("packaging").origin)
print(util.find_spec("torch").origin, metadata.version("torch"))
open("out", "w").close()
"""


def test_a_run_installs_once_and_keeps_the_pods_torch(pod: tuple[PodServer, ApiServer], tmp_path: Path) -> None:
    """The pod's Python is this environment's, which has torch; what comes from the list shadows the rest."""
    server, api = pod
    client = client_for(server, api, tmp_path, installs=True, requirements=pins)
    first = attend_to(client, job_command(tmp_path, SOURCE), tmp_path)
    log = client.records.log_path(first.run_id).read_text()
    assert "installing 1 packages" in log and f"keeping the pod's torch {version('torch')}" in log
    prefix, packaging, torch = log.splitlines()[-3:]
    assert prefix.startswith(str(server.root / "environments")) and packaging.startswith(prefix)
    assert not torch.startswith(prefix) and torch.endswith(version("torch"))
    second = attend_to(client, job_command(tmp_path, SOURCE), tmp_path)
    assert second.run_id != first.run_id
    assert "dependencies are installed already" in client.records.log_path(second.run_id).read_text()


def test_an_installation_that_was_killed_is_made_again(tmp_path: Path) -> None:
    pinned = pins()[:1]
    folder = environment_folder(tmp_path, pinned)
    folder.mkdir(parents=True)
    (folder / "half").write_text("an environment")
    install(tmp_path, pinned, "0.9.8")
    assert not (folder / "half").exists() and python_of(folder).exists() and (folder / "ready.json").exists()


def test_a_package_that_there_is_none_of(tmp_path: Path) -> None:
    with pytest.raises(InstallError, match=r"`.*uv pip install` failed with exit code"):
        install(tmp_path, [f"packaging=={version('packaging')}.post99999"], "0.9.8")
