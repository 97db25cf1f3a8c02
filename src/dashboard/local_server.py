"""The dashboard as a user starts it, on a free port of this machine, for as long as something looks at it."""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator, Sequence
from pathlib import Path

from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError

PATIENCE = 120.0  # seconds until it answers


@contextlib.contextmanager
def local_server(outputs: Path, results: Path) -> Generator[str]:
    """Its address, once it answers; it is ended with the context. `UserError` if it does not come up."""
    options = ("--outputs", str(outputs), "--results-dir", str(results))
    with served("mi_dashboard.py", options) as address:
        yield address


@contextlib.contextmanager
def served(script: str, options: Sequence[str] = ()) -> Generator[str]:
    """The address of any streamlit script, under the project's settings; as `local_server`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", script, "--server.port", str(port)]
    command += ["--server.headless", "true", "--", *options]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(process, f"{address}/_stcore/health")
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=2).close()
            return
        time.sleep(0.1)
    raise UserError("mi_dashboard.py: the dashboard does not come up; try: uv run streamlit run mi_dashboard.py")
