"""Labelled prompts and the three splits of a data set, as they stand in JSONL files.

Unsafe is the positive class everywhere. Published data sets in their own columns are left to `published`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from src.utils.errors import UserError
from src.utils.jsonl import read_jsonl

SPLITS = ("train", "validation", "test")
SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class SafetySample:
    """One prompt and whether answering it would be unsafe; the two of a contrast pair share `pair_id`.

    `group_id` is shared by more than a pair: by what was written together, or about the same thing.
    """

    sample_id: str
    prompt: str
    unsafe: bool
    category: str
    source: str
    pair_id: str | None
    group_id: str | None = None

    @property
    def label(self) -> Literal["safe", "unsafe"]:
        return "unsafe" if self.unsafe else "safe"

    @property
    def group(self) -> str:
        """What must stay together in a resample or a fold: the group, the pair, or the sample itself."""
        return self.group_id or self.pair_id or self.sample_id


@dataclass(frozen=True)
class SafetyData:
    """The three splits; no prompt is in two of them (`check_splits`)."""

    train: tuple[SafetySample, ...]
    validation: tuple[SafetySample, ...]
    test: tuple[SafetySample, ...]

    def split(self, name: SplitName) -> tuple[SafetySample, ...]:
        return getattr(self, name)


class SampleRow(BaseModel):
    """A line of a JSONL file; further columns, such as `style`, are ignored."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    sample_id: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    label: Literal["safe", "unsafe"]
    category: str = Field(min_length=1)
    source: str = Field(min_length=1)
    pair_id: str | None = None
    group_id: str | None = None


def load_samples(path: Path) -> tuple[SafetySample, ...]:
    """Read `.jsonl` or `.jsonl.gz`; a bad row, a second use of a sample_id or an empty file raises `UserError`."""
    samples: dict[str, SafetySample] = {}
    for number, value in read_jsonl(path):
        try:
            row = SampleRow.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "row"
            raise UserError(
                f"{path}, line {number}: {where}: {first['msg'].lower()}; "
                "a row has sample_id, prompt, label (safe or unsafe), category, source, pair_id, group_id"
            ) from error
        if row.sample_id in samples:
            raise UserError(f"{path}, line {number}: sample_id {row.sample_id} stands twice; give each row its own")
        samples[row.sample_id] = SafetySample(
            row.sample_id, row.prompt, row.label == "unsafe", row.category, row.source, row.pair_id, row.group_id
        )
    if not samples:
        raise UserError(f"{path}: holds no row")
    return tuple(samples.values())


def load_splits(folder: Path) -> SafetyData:
    """Read `train.jsonl`, `validation.jsonl` and `test.jsonl` of a folder and check them against each other."""
    data = SafetyData(*(load_samples(folder / f"{name}.jsonl") for name in SPLITS))
    check_splits(data, str(folder))
    return data


def check_splits(data: SafetyData, name: str) -> None:
    """Raise `UserError` for a split of one class, and for a prompt, sample or pair that stands in two splits."""
    seen: dict[str, str] = {}
    for split in SPLITS:
        samples = data.split(split)
        counts = Counter(sample.label for sample in samples)
        if not samples:
            raise UserError(
                f"{name}: {split} has no prompts; name that split's data too, as a folder of its files, "
                "or a file whose name says no split: its rows are shared out"
            )
        if len(counts) < 2:
            raise UserError(f"{name}: {split} has only {', '.join(counts)} prompts; both classes are needed")
        keys = {key for sample in samples for key in split_keys(sample)}
        for key in sorted(keys):
            if key in seen:
                raise UserError(f"{name}: {key} is in {seen[key]} and in {split}; a split must not leak into another")
        seen |= dict.fromkeys(keys, split)


def split_keys(sample: SafetySample) -> list[str]:
    """What may be in one split only: the prompt, spaces and case apart, the sample, its pair, its group."""
    together = {"pair": sample.pair_id, "group": sample.group_id}
    return [
        f"prompt {' '.join(sample.prompt.casefold().split())!r}",
        f"sample {sample.sample_id}",
        *(f"{kind} {name}" for kind, name in together.items() if name is not None),
    ]


def labels(samples: Sequence[SafetySample]) -> Bool[np.ndarray, " samples"]:
    """Whether each sample is unsafe."""
    return np.array([sample.unsafe for sample in samples], dtype=bool)
