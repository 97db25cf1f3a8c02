"""How far a job is, read off what it leaves behind: its log's progress bar, its shards, and nvidia-smi."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

TAIL_BYTES = 4096
BAR = re.compile(r"(\d+)/(\d+) \[([\d:]+)<([\d:]+|\?),\s*(?:([\d.]+|\?)\s*([a-z]+)/s|([\d.]+)s/([a-z]+))")  # tqdm's


class Progress:
    """Samples of one job; `work` is its folder, `log` its log."""

    def __init__(self, log: Path, work: Path) -> None:
        self._log = log
        self._work = work
        self._tokens: dict[str, int] = {}
        self._count_tokens()
        self._before = sum(self._tokens.values())
        self._started = time.time()

    def sample(self) -> dict[str, Any]:
        """`done`, `total`, `unit`, `eta_seconds` (of the log's last bar), `tokens_per_second`, `gpus`, if known."""
        found: dict[str, Any] = read_bar(read_tail(self._log)) or {}
        self._count_tokens()
        tokens = sum(self._tokens.values())
        if tokens > self._before:
            found["tokens"] = tokens
            found["tokens_per_second"] = round((tokens - self._before) / (time.time() - self._started), 1)
        if gpus := gpu_memory():
            found["gpus"] = gpus
        return found

    def _count_tokens(self) -> None:
        """Tokens of answers in the collector's parts; the third arm reads answers of the second."""
        for file in self._work.glob("results/*.parts/*.safetensors"):
            if file.name not in self._tokens and not file.name.startswith("base_on_em"):
                self._tokens[file.name] = answer_tokens(file)


def read_bar(tail: str) -> dict[str, Any] | None:
    """The last progress bar of a log; None if there is none."""
    bars = list(BAR.finditer(tail))
    if not bars:
        return None
    done, total, _, left, _, unit, _, slow_unit = bars[-1].groups()
    bar: dict[str, Any] = {"done": int(done), "total": int(total), "unit": unit or slow_unit}
    if left != "?":
        bar["eta_seconds"] = sum(int(part) * 60**place for place, part in enumerate(reversed(left.split(":"))))
    return bar


def read_tail(path: Path, size: int = TAIL_BYTES) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def answer_tokens(file: Path) -> int:
    """The length of `ids` in the header of a safetensors file; 0 if it has none."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 1 << 24)))
        return int(header["ids"]["shape"][0])
    except (OSError, ValueError, KeyError, IndexError, struct.error):
        return 0


def gpu_memory() -> list[dict[str, float]]:
    """Used and total MiB and utilisation in percent of each GPU, 0 where it does not say; empty where there is none."""
    query = ["nvidia-smi", "--query-gpu=memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(",") for line in output.decode().splitlines()]
    names = ("used_mib", "total_mib", "percent")
    return [dict(zip(names, map(number, row))) for row in rows if len(row) == len(names)]  # noqa: B905 # 3.8


def number(text: str) -> float:
    """A figure of nvidia-smi; a GPU that is shared out says [N/A] for some."""
    try:
        return float(text)
    except ValueError:
        return 0.0
