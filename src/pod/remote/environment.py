"""What the container's environment says of this pod: its id, the key that RunPod gives it alone, the API's address.

An SSH session does not see all of it, and what a container starts with sees no session's: both find the same here.
"""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT_FILES = ("/etc/rp_environment", "/proc/1/environ")  # what the start script exports; the container's own
KEY, POD, API = "RUNPOD_API_KEY", "RUNPOD_POD_ID", "RUNPOD_API_BASE_URL"


def find_credentials() -> dict[str, str]:
    """The pod's id, the pod-scoped key and the API's address, as far as they are there."""
    return {name: value for name in (KEY, POD, API) if (value := find_variable(name))}


def find_variable(name: str) -> str | None:
    """A variable of this process, else of the container."""
    places = (os.environ, *(read_environment(Path(file)) for file in ENVIRONMENT_FILES))
    return next((place[name] for place in places if place.get(name)), None)


def why_unguarded() -> str:
    """Empty where a guard can do its work; else what the container's environment has not."""
    missing = [name for name in (KEY, POD) if not find_variable(name)]
    return "the container's environment has no {}".format(" and no ".join(missing)) if missing else ""


def pod_name() -> str:
    """What tells this pod from another on the same volume, in a container that was made anew, too."""
    return find_variable(POD) or os.uname().nodename


def read_environment(path: Path) -> dict[str, str]:
    """NAME=value pairs of an environment: zero-separated as in /proc, or lines of `export NAME="value"`."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = {}
    for line in text.split("\0") if "\0" in text else text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals:
            pairs[name.rpartition(" ")[2]] = value.strip("\"'")
    return pairs
