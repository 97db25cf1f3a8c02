"""Programs of the system that these tests drive.

Without one, the tests that need it are skipped; under REQUIRE_SYSTEM_TESTS=1 (CI) they fail.
"""

import os
import shutil

import pytest

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
