"""Programs of the system that these tests drive, and the pod that tests of a file share.

Without a program, the tests that need it are skipped; under REQUIRE_SYSTEM_TESTS=1 (CI) they fail.
"""

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.pod_api_server import ApiServer, pod_entry
from tests.pod_server import PodServer

SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # where sshd lies; not on every user's PATH


def require_program(package: str, *names: str) -> str:
    """The path of the first of `names` that is installed; without any the test is skipped, or fails in CI."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM_FOLDERS])
    found = next(filter(None, (shutil.which(name, path=path) for name in names)), None)
    if found is not None:
        return found
    reason = f"no {names[0]} here: apt install {package}"
    if os.environ.get("REQUIRE_SYSTEM_TESTS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    return require_program("chromium", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def sshd() -> str:
    return require_program("openssh-server", "sshd")


@pytest.fixture(scope="module")
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory, sshd: str, api: ApiServer) -> Iterator[PodServer]:
    with PodServer(tmp_path_factory.mktemp("pod"), sshd, api_url=api.url) as server:
        yield server


@pytest.fixture
def fresh_api(api: ApiServer, pod: PodServer) -> None:
    """The API as if nothing had been asked of it: it has the one pod, on which no run is or was."""
    pod.end_processes()
    shutil.rmtree(pod.root / "runs", ignore_errors=True)
    shutil.rmtree(pod.folder / f"tmp/em-persona-{os.getuid()}", ignore_errors=True)
    api.pods = {pod.pod_id: pod_entry(pod.pod_id, pod.port)}
    for past in (api.failures, api.asked, api.created):
        past.clear()
