"""The folder of a watched training as the dashboard sees it: which moments, which pictures, which records.

A folder that is being written is read as far as it is whole. What a page shows is left to `written_pages`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from src.dashboard.reading import Reading, Readings
from src.utils.watching.epoch_metrics import EpochMetrics, load_metrics
from src.visualizations.written_pages import EXPORTED, INDEX, PLOTLY_JS

FOLDER = "training_visualizations"
TRAINING = "uv run python src/train_safety_judge.py --visualize_during_training"
FINETUNING = "uv run python src/scripts/02_finetune_lora.py --force --visualize_during_training"
KINDS = {
    "tokens": "Tokens",
    "layers": "Layers",
    "circuit_comparison": "Circuit comparison",
    "neuron_map": "Neurons",
    "circuits": "Circuits",
}
CAUSAL = ("circuit_comparison", "neuron_map", "circuits")
ADVANCED = ("neuron_map", "circuits")  # of a judge, whose circuits are always compared; of a persona all causal ones
PAGE = re.compile(
    r"(?P<unit>epoch|step)_(?P<number>\d{1,9})_"
    r"(?:sample_(?P<sample>\d{1,4})_(?P<label>[a-z]+)_(?P<of_sample>tokens|layers)|(?P<kind>circuit_comparison|neuron_map|circuits))"
    r"\.html"
)
RECORD = re.compile(r"(epoch|step)_(\d{1,9})_metrics\.json")
VALUES = re.compile(r"(epoch|step)_\d{1,9}_(values\.safetensors|projections\.json)")
OTHER_PAGES = re.compile(r"(epoch|step)_\d{1,9}_.+\.html")
PROGRESS = "training_progress.html"
KNOWN = {PROGRESS, INDEX, PLOTLY_JS, EXPORTED, f"{PROGRESS}.manifest.json"}
# of a thousand epochs every record is looked at, so that these must not push out what else is kept
RECORDS = Readings(kept=20_000)
RUNS = Readings(kept=8)


@dataclass(frozen=True)
class PageFile:
    """One page of one moment; `sample` and `label` are None where it is about all samples."""

    folder: Path
    name: str
    number: int
    kind: str
    sample: int | None = None
    label: str | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def caption(self) -> str:
        return "" if self.sample is None else f"sample {self.sample} ({self.label})"


@dataclass(frozen=True)
class WatchedRun:
    """What lies in one folder. `pages` are by kind and number, by sample within; `foreign` names what is not ours.

    `unit` is what is counted, `epoch` or `step`, `numbers` the moments that there is something to look at of: pictures,
    and of a persona's fine-tune records too. The records are read when they are first asked for: pictures, which need
    none of them, need not wait.
    """

    folder: Path
    unit: str
    pages: Mapping[tuple[str, int], Sequence[PageFile]]
    record_names: Sequence[str] = ()
    foreign: Sequence[str] = ()
    has_progress: bool = False
    numbers: Sequence[int] = field(default=())

    @property
    def is_persona(self) -> bool:
        """A persona's fine-tune is watched by steps, a judge's by epochs."""
        return self.unit == "step"

    @property
    def kinds(self) -> Mapping[str, str]:
        """What pictures such a training has, with their names: single requests are a judge's."""
        return {kind: name for kind, name in KINDS.items() if kind in CAUSAL or not self.is_persona}

    def command(self, kind: str = "") -> str:
        """What draws pictures of a kind."""
        is_extra = kind in (CAUSAL if self.is_persona else ADVANCED)
        return (FINETUNING if self.is_persona else TRAINING) + (" --run_advanced_mi" if is_extra else "")

    @cached_property
    def records(self) -> Sequence[EpochMetrics]:
        found = [reading.value for reading in self.readings if reading.value is not None]
        return sorted(found, key=lambda record: record.number)

    @property
    def problems(self) -> Sequence[str]:
        """Which records cannot be read, and why; one that is gone since the folder was listed is no problem."""
        return [str(one.problem) for one in self.readings if one.value is None and not one.is_missing]

    @cached_property
    def readings(self) -> Sequence[Reading[EpochMetrics]]:
        command = self.command()
        return [RECORDS.read(load_metrics, self.folder / name, made_by=command) for name in self.record_names]

    def of(self, kind: str, number: int) -> Sequence[PageFile]:
        return self.pages.get((kind, number), ())

    def record(self, number: int) -> EpochMetrics | None:
        return next((record for record in self.records if record.number == number), None)


def find_runs(roots: Iterable[Path]) -> list[Path]:
    """The folders of watched trainings under some folders, at most three levels down, the last changed first."""
    found = {
        path
        for root in roots
        for depth in ("", "*/", "*/*/")
        for path in root.glob(f"{depth}{FOLDER}")
        if path.is_dir()
    }
    return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, str(path)))


def current_run(folder: Path) -> WatchedRun:
    """`read_run`, again only where a file was added, replaced or removed since: a thousand epochs take a while.

    A folder that is not there gives a run without anything.
    """
    reading = RUNS.read(read_run, folder, made_by=TRAINING)
    return read_run(folder) if reading.value is None else reading.value


def read_run(folder: Path) -> WatchedRun:
    """Look through one folder; an empty or missing one gives a run without anything."""
    pages: dict[tuple[str, int], list[PageFile]] = {}
    record_names: list[str] = []
    foreign: list[str] = []
    units: dict[str, int] = {}
    steps: set[int] = set()
    names = file_names(folder)
    for name in names:
        page, record = PAGE.fullmatch(name), RECORD.fullmatch(name)
        if page:
            units[page["unit"]] = units.get(page["unit"], 0) + 1
            kind, number = page["of_sample"] or page["kind"], int(page["number"])
            sample = None if page["sample"] is None else int(page["sample"])
            pages.setdefault((kind, number), []).append(PageFile(folder, name, number, kind, sample, page["label"]))
        elif record:
            units[record[1]] = units.get(record[1], 0) + 1
            record_names.append(name)
            if record[1] == "step":
                steps.add(int(record[2]))
        elif name not in KNOWN and not VALUES.fullmatch(name) and not OTHER_PAGES.fullmatch(name):
            foreign.append(name)
    for found in pages.values():
        found.sort(key=lambda one: (-1 if one.sample is None else one.sample, one.name))
    unit = max(units, key=lambda name: units[name], default="epoch")
    return WatchedRun(
        folder=folder,
        unit=unit,
        pages=pages,
        record_names=record_names,
        foreign=foreign,
        has_progress=PROGRESS in names,
        numbers=sorted({number for _, number in pages} | (steps if unit == "step" else set())),
    )


def file_names(folder: Path) -> list[str]:
    """The names in a folder, sorted, hidden ones left out: those are unfinished writes."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return []


def folder_state(folder: Path) -> tuple[int, int]:
    """What changes when a file is added, replaced or removed: modification time in ns, and the number of files."""
    try:
        return folder.stat().st_mtime_ns, len(os.listdir(folder))  # noqa: PTH208  # names alone, of thousands
    except OSError:
        return -1, -1


def best_number(records: Sequence[EpochMetrics]) -> tuple[int, str] | None:
    """The moment that a judge keeps by default, and by what: the lowest validation loss, without any the best AUROC.

    The baseline (number 0) was not trained and is no candidate. None where nothing was measured.
    """
    trained = [record for record in records if record.number > 0]
    losses = [
        (record.trainer_metrics["eval_loss"], record.number)
        for record in trained
        if "eval_loss" in record.trainer_metrics
    ]
    if losses:
        return min(losses)[1], "lowest validation loss"
    scores = [(-score, record.number) for record in trained if (score := record.metrics.get("auroc")) is not None]
    return (min(scores)[1], "highest AUROC") if scores else None
