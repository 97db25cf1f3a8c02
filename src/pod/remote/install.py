"""The job's Python environment on the pod: the client's versions, around the pod's own torch.

It lies under a name made of the list of versions and the pod's Python, so that it is made once. The pod's torch, which
fits its GPU, comes last on the path of the new environment; nothing else of the pod's packages is preferred to ours.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

OLDEST_PYTHON = (3, 11)
FIND_TORCH = """
import importlib.metadata, importlib.util, os
print(importlib.metadata.version("torch"))
print(os.path.dirname(os.path.dirname(importlib.util.find_spec("torch").origin)))
"""
WITH_TORCH = ("torch", "triton", "nvidia-", "cuda-")  # names, and beginnings of names, of what comes with torch
READY = "ready.json"


class InstallError(Exception):
    """One line that says what is wrong and what to do."""


def environment_folder(root: Path, requirements: list[str]) -> Path:
    """Where the environment for these versions and this Python lies."""
    key = "\n".join([sys.version, sys.executable, *requirements])
    return root / "environments" / hashlib.sha256(key.encode()).hexdigest()[:16]


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def install(root: Path, requirements: list[str], uv_version: str) -> None:
    """Make the environment unless it is there; says on standard output what it does. Raises `InstallError`."""
    if sys.version_info < OLDEST_PYTHON:
        found, needed = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST_PYTHON))
        raise InstallError(
            f"{sys.executable} is Python {found}, and the project needs {needed}; create the pod "
            "from a newer image (--image), or name another with --remote-python"
        )
    folder = environment_folder(root, requirements)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / (folder.name + ".lock")).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / READY).exists():
            print("dependencies are installed already", flush=True)
            return
        shutil.rmtree(folder, ignore_errors=True)
        torch = find_torch()
        uv = find_uv(root, uv_version)
        run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        chosen = [line for line in requirements if torch is None or not comes_with_torch(line)]
        print(f"installing {len(chosen)} packages", flush=True)
        listed = folder / "requirements.txt"
        listed.write_text("\n".join(chosen) + "\n")
        dependencies = ["--no-deps"] if torch else []  # the list is complete but for what a GPU's torch brings along
        run([*uv, "pip", "install", *dependencies, "--python", str(python_of(folder)), "--requirement", str(listed)])
        if torch is not None:
            print(f"keeping the pod's torch {torch[0]}", flush=True)
            site = Path(
                output([str(python_of(folder)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            )
            (site / "torch_of_the_pod.pth").write_text(torch[1] + "\n")
        (folder / READY).write_text(json.dumps({"torch": torch[0] if torch else None}))


def find_torch() -> tuple[str, str] | None:
    """Version and folder of the torch that this Python has; None if it has none."""
    try:
        version, folder = output([sys.executable, "-c", FIND_TORCH]).splitlines()
    except (InstallError, ValueError):
        return None
    return version, folder


def find_uv(root: Path, version: str) -> list[str]:
    """The command of uv: the pod's own, else one that is installed beside the runs."""
    own = root / "tools" / "bin" / "uv"
    beside = Path(sysconfig.get_path("scripts")) / "uv"
    for path in (shutil.which("uv"), str(beside), str(own)):
        if path and os.access(path, os.X_OK):
            return [path]
    run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(root / "tools"), "uv==" + version])
    return [str(own)]


def comes_with_torch(requirement: str) -> bool:
    name = requirement.partition("==")[0].lower()
    return name in WITH_TORCH or name.startswith(tuple(word for word in WITH_TORCH if word.endswith("-")))


def run(command: list[str]) -> None:
    code = subprocess.call(command)
    if code != 0:
        words = " ".join(command[:3])
        raise InstallError(
            f"`{words}` failed with exit code {code}, see the lines above; mend that and give the same command again"
        )


def output(command: list[str]) -> str:
    found = subprocess.run(command, capture_output=True, check=False)
    if found.returncode != 0:
        raise InstallError(f"`{' '.join(command[:2])}` failed with exit code {found.returncode}")
    return found.stdout.decode().strip()
