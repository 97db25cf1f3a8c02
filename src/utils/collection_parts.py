"""What one arm recorded for one batch: a file in the work folder, whole or made again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.utils.artifacts import write_tensors
from src.utils.atomic_writes import write_atomically
from src.utils.generation import Response

Arm = Literal["base", "em", "base_on_em"]
ARMS: tuple[Arm, ...] = ("base", "em", "base_on_em")  # the third reads what the second said
OWN_NAMES = ("lengths", "ids", "truncated", "counted", "split", "failures")


@dataclass(frozen=True)
class ArmPart:
    """Answers and pooled activations of a batch, in its order.

    `pooled` maps names of tensors to (rows, width) arrays; `counted` is how many answer tokens the means are over.
    `is_split`: rows that were run in a smaller batch because memory ran out or a row failed. `failures`: row in the
    batch -> why it has no answer or no activations.
    """

    responses: list[Response]
    pooled: Mapping[str, Float32[np.ndarray, "rows width"]]
    counted: Int[np.ndarray, " rows"]
    is_split: Bool[np.ndarray, " rows"]
    failures: Mapping[int, str] = field(default_factory=dict)


def answers_alone(responses: Sequence[Response]) -> ArmPart:
    """Answers whose activations nobody asks for."""
    return ArmPart(list(responses), {}, np.zeros(len(responses), int), np.zeros(len(responses), bool))


def part_path(work_dir: Path, arm: Arm, batch: int) -> Path:
    return work_dir / f"{arm}-{batch:05d}.safetensors"


def write_part(path: Path, part: ArmPart) -> None:
    """One batch of one arm, whole or not at all."""
    tensors = {
        "lengths": np.array([len(response.ids) for response in part.responses], dtype=np.int64),
        "ids": np.array([token for response in part.responses for token in response.ids], dtype=np.int64),
        "truncated": np.array([response.is_truncated for response in part.responses], dtype=bool),
        "counted": np.asarray(part.counted, dtype=np.int64),
        "split": np.asarray(part.is_split, dtype=bool),
        "failures": np.frombuffer(json.dumps({str(row): why for row, why in part.failures.items()}).encode(), np.uint8),
    }
    pooled = {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in part.pooled.items()}
    with write_atomically(path) as temporary:
        write_tensors(tensors | pooled, temporary)


def read_part(path: Path) -> ArmPart:
    tensors = load_file(path)
    ends = np.cumsum(tensors["lengths"])
    responses = [
        Response(tuple(tensors["ids"][end - length : end].tolist()), bool(truncated))
        for end, length, truncated in zip(ends, tensors["lengths"], tensors["truncated"], strict=True)
    ]
    failures = json.loads(tensors["failures"].tobytes())
    return ArmPart(
        responses,
        {name: values for name, values in tensors.items() if name not in OWN_NAMES},
        tensors["counted"],
        tensors["split"],
        {int(row): why for row, why in failures.items()},
    )


def is_whole(path: Path, rows: int) -> bool:
    """Whether a part is there, readable and of so many rows; a damaged one is made again."""
    try:
        part = read_part(path)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return False
    lengths = {len(part.responses), len(part.counted), len(part.is_split), *(len(v) for v in part.pooled.values())}
    return lengths == {rows}


def join_parts(parts: Sequence[ArmPart]) -> ArmPart:
    """Batches one after another; NaN for rows whose part has no activations because all of them failed."""
    starts = np.cumsum([0, *(len(part.responses) for part in parts)]).tolist()
    widths = {name: values.shape[1] for part in parts for name, values in part.pooled.items()}
    return ArmPart(
        [response for part in parts for response in part.responses],
        {
            name: np.concatenate(
                [part.pooled.get(name, np.full((len(part.responses), w), np.nan, np.float32)) for part in parts]
            )
            for name, w in widths.items()
        },
        np.concatenate([part.counted for part in parts]),
        np.concatenate([part.is_split for part in parts]),
        {start + row: why for start, part in zip(starts, parts, strict=False) for row, why in part.failures.items()},
    )
