"""What a pod has: Python, torch, GPUs, disk, and whether the model hub can be reached from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from src.pod.remote.environment import why_unguarded
from src.pod.remote.progress import gpu_memory
from src.pod.remote.supervisor import free_bytes

HUB = "https://huggingface.co"
TORCH_FACTS = """
import json, torch
gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [
    {"name": torch.cuda.get_device_name(i), "bytes": torch.cuda.get_device_properties(i).total_memory} for i in gpus]}))
"""


def probe(root: Path, asks_hub: bool = True) -> dict[str, Any]:
    """Facts as plain data; what cannot be found out is None."""
    root.mkdir(parents=True, exist_ok=True)
    facts = {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "free_bytes": free_bytes(root),
        "is_on_volume": is_on_volume(root),
        "visible_gpus": len(gpu_memory()),
        "unguarded": why_unguarded(),
        "torch": None,
    }
    if asks_hub:
        facts["torch"] = torch_facts()
        facts["hub"] = reach(os.environ.get("HF_ENDPOINT") or HUB)
    return facts


def is_on_volume(root: Path) -> bool:
    """Whether a folder lies elsewhere than on the container's own disk, which a pod loses when it is stopped."""
    return root.stat().st_dev != Path("/").stat().st_dev


def torch_facts() -> dict[str, Any] | None:
    try:
        output = subprocess.run(
            [sys.executable, "-c", TORCH_FACTS],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=True,
        ).stdout
        return json.loads(output.decode().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def reach(url: str) -> str:
    """Empty where a server answers, whatever it says; else why it cannot be reached."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10):
            return ""
    except urllib.error.HTTPError:
        return ""
    except OSError as error:
        return str(getattr(error, "reason", error))
