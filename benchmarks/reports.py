"""What every benchmark's report says of its circumstances, and where it is written."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from src.utils.atomic_writes import write_atomically
from src.utils.config import PROJECT_ROOT
from src.utils.manifests import git_state

REPORTS = PROJECT_ROOT / "results" / "benchmarks"


def circumstances() -> dict[str, Any]:
    """Date, commit, machine and versions."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (git_state().commit or "unknown")[:7],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_report(report: dict[str, Any], folder: Path, name: str) -> Path:
    """`<folder>/<name>.json` with the circumstances first; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    with write_atomically(file) as temporary:
        temporary.write_text(json.dumps(circumstances() | report, indent=2) + "\n", encoding="utf-8")
    return file


def device_kind() -> str:
    return "gpu" if torch.cuda.is_available() else "cpu"
