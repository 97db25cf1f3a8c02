"""What the client knows of a run on a pod: `results/runs/<run_id>.json`, without secrets, and its log beside it.

The record is written before anything happens on the pod, so that a client killed at any moment finds its run again.
The dashboard reads these files and nothing else.
"""

import fcntl
import secrets
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError

RunState = Literal["preparing", "running", "finished", "fetched", "failed", "cancelled", "interrupted", "lost"]
OVER = ("fetched", "cancelled", "lost")  # the same command begins a new run after these


class RunRecord(BaseModel):
    """One run. Times are UTC; costs are US dollars; `options` are those of the script on the pod."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    step: str
    script: str
    options: list[str]
    pod_id: str
    pod_name: str | None = None
    state: RunState = "preparing"
    round: int = Field(1, description="counts retries of a failed run; the pod runs each once")
    created: datetime
    started: datetime | None = None
    ended: datetime | None = None
    last_seen: datetime | None = None
    cost_per_hour: float = 0.0
    cost_so_far: float = 0.0
    cost_before: float = Field(0.0, description="of it, what was spent before the job was last started again")
    charged_from: datetime | None = Field(None, description="since when the pod's price counts; none: since started")
    log_offset: int = 0
    log_start: int = Field(0, description="where in the local log that of the present pod's folder begins")
    remote_root: str
    remote_folder: str
    outputs: list[str]
    when_done: Literal["keep", "stop", "terminate"] = "keep"
    progress: dict[str, Any] = Field(
        default_factory=dict, description="the pod's status.json: done, total, tokens/s ..."
    )
    exit_code: int | None = None
    exit_reason: str | None = None

    def updated(self, **changes: Any) -> "RunRecord":
        """The record with changes, validated, its cost brought up to date."""
        record = RunRecord.model_validate({**self.model_dump(), **changes})
        if record.started is None:
            return record
        start = record.charged_from or record.started
        end = record.ended or record.last_seen or start
        hours = max(0.0, (end - start).total_seconds() / 3600)
        return record.model_copy(update={"cost_so_far": round(record.cost_before + hours * record.cost_per_hour, 4)})

    def charged_anew(self, **changes: Any) -> "RunRecord":
        """The record with changes, the price counted from now on: since it was last seen no pod has worked for it."""
        return self.updated(cost_before=self.cost_so_far, charged_from=now() if self.started else None, **changes)


class GpuStatus(BaseModel):
    model_config = ConfigDict(extra="ignore")

    used_mib: float
    total_mib: float
    percent: float = 0.0


class PodStatus(BaseModel):
    """A pod's status.json, as far as it is known here."""

    model_config = ConfigDict(extra="ignore")

    phase: str | None = None
    at: float | None = None
    done: int | None = None
    total: int | None = None
    unit: str | None = None
    eta_seconds: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    gpus: list[GpuStatus] | None = None


def progress_of(status: object) -> dict[str, Any]:
    """What a pod says of its progress, nothing where it is not what it should be: the pod is not trusted."""
    try:
        return PodStatus.model_validate(status or {}).model_dump(exclude_none=True)
    except ValidationError:
        return {}


class RunRecords:
    """The folder of records, `results/runs`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"

    def log_path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.log"

    def staging_path(self, run_id: str) -> Path:
        """Where fetched files lie until they are verified."""
        return self.folder / f"{run_id}.files"

    @contextmanager
    def opening(self) -> Generator[None]:
        """Alone among the clients of this folder; another is waited for."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "opening.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def save(self, record: RunRecord) -> RunRecord:
        with write_atomically(self.path(record.run_id)) as temporary:
            temporary.write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return record

    def load(self, run_id: str) -> RunRecord:
        path = self.path(run_id)
        try:
            return RunRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            known = ", ".join(record.run_id for record in self.all()) or "none"
            raise UserError(f"run {run_id}: is unknown in {self.folder}; known: {known}", 2) from error
        except (OSError, ValidationError) as error:
            raise UserError(f"{path}: is no record of a run of this version; remove it") from error

    def all(self) -> list[RunRecord]:
        """Every readable record, the newest first."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(RunRecord.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError):
                continue  # digests.json, or half of a file by another hand
        return sorted(found, key=lambda record: record.created, reverse=True)

    def unfinished(self, step: str, script: str, options: Sequence[str], pod_id: str | None) -> RunRecord | None:
        """The newest run of the same command that is not over."""
        for record in self.all():
            is_same = (record.step, record.script, record.options) == (step, script, list(options))
            if is_same and record.state not in OVER and pod_id in (None, record.pod_id):
                return record
        return None

    def latest(self) -> RunRecord:
        found = self.all()
        if not found:
            raise UserError(f"{self.folder}: no run yet; start one with src/pod/persona_data_runner.py", 2)
        return found[0]


def new_run_id(step: str) -> str:
    return f"{step}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def now() -> datetime:
    return datetime.now(UTC)


def append_log(path: Path, piece: bytes) -> int:
    """Append what came from the pod to the local log; its size, which is the offset to go on from.

    From `log_start` on, the local log is a prefix of the pod's log, byte for byte, at any moment: its size needs no
    record of its own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(piece)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make room: the run goes on, and the same command goes on "
            "with its log"
        ) from error
    return path.stat().st_size


def log_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def progress_line(progress: Mapping[str, Any]) -> str:
    """Prompts done, tokens/s, GPU memory, time left, in one line; empty where nothing is known."""
    parts = []
    if "total" in progress and "done" in progress:
        parts.append(f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".strip())
    if "tokens_per_second" in progress:
        parts.append(f"{progress['tokens_per_second']:.0f} tokens/s")
    parts += [f"GPU {gpu['used_mib'] / 1024:.1f}/{gpu['total_mib'] / 1024:.0f} GiB" for gpu in progress.get("gpus", [])]
    if "eta_seconds" in progress:
        parts.append(f"{progress['eta_seconds'] // 60}:{progress['eta_seconds'] % 60:02d} left")
    return ", ".join(parts)
