"""Activations token by token, on disk in shards: written batch by batch, read without loading everything.

A folder of safetensors files and an index. Memory is that of one batch, whatever the size of the study.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError

INDEX = "index.json"
ROWS, IDS = "rows", "ids"


@dataclass(frozen=True)
class TokenShard:
    """The answer tokens of some rows, one after another: each token's row, its id, and its activation by site."""

    rows: Int[np.ndarray, " tokens"]
    ids: Int[np.ndarray, " tokens"]
    sites: dict[str, Float[Tensor, "tokens width"]]


def shard_path(folder: Path, arm: str, batch: int) -> Path:
    return folder / f"tokens-{arm}-{batch:05d}.safetensors"


def write_shard(path: Path, shards: Sequence[TokenShard]) -> None:
    """One batch (in the pieces in which it was run), whole or not at all; nothing where no row has an answer."""
    if not shards:
        shards = [TokenShard(np.zeros(0, np.int64), np.zeros(0, np.int64), {})]
    tensors = {
        ROWS: torch.from_numpy(np.concatenate([shard.rows for shard in shards])),
        IDS: torch.from_numpy(np.concatenate([shard.ids for shard in shards])),
    }
    for name in shards[0].sites:
        tensors[name] = torch.cat([shard.sites[name] for shard in shards]).contiguous()
    with write_atomically(path) as temporary:
        save_file(tensors, temporary)


def gather_shards(work_dir: Path, folder: Path, rows: int) -> None:
    """Link the shards of a finished collection into `folder` and write their index: which rows are in which file."""
    shards: list[dict[str, Any]] = []
    found: set[str] = set()
    for path in sorted(work_dir.glob("tokens-*.safetensors")):
        with safe_open(path, framework="np") as tensors:
            held = tensors.get_tensor(ROWS)
            sites = [name for name in tensors.keys() if name not in (ROWS, IDS)]  # noqa: SIM118
        entry = {"file": path.name, "arm": path.stem.split("-")[1], "rows": np.unique(held).tolist()}
        shards.append(entry | {"tokens": len(held), "sites": sites})
        found.update(sites)
        os.link(path, folder / path.name)
    index = {"rows": rows, "sites": sorted(found), "shards": shards}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class TokenReader:
    """Reads a folder of shards row by row or file by file; holds one file's slice in memory at a time.

    Rows are numbered as in the study's frame. Raises `UserError` for a folder without a whole index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.n_rows: int = index["rows"]
            self.sites: list[str] = index["sites"]
            self.shards: list[dict[str, Any]] = index["shards"]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder / INDEX}: no index of token shards; run step 3 with --tokens") from error

    def row(self, arm: str, row: int, site: str) -> tuple[Int[np.ndarray, " tokens"], Float[Tensor, "tokens width"]]:
        """Token ids and activations of one answer; empty arrays for an answer without a token."""
        for shard in self.shards:
            if shard["arm"] == arm and row in shard["rows"]:
                with self._open(shard) as tensors:
                    places = np.flatnonzero(tensors.get_tensor(ROWS).numpy() == row)
                    start, stop = int(places[0]), int(places[-1]) + 1  # a row's tokens stand together
                    return tensors.get_slice(IDS)[start:stop].numpy(), tensors.get_slice(site)[start:stop]
        return np.zeros(0, np.int64), torch.zeros(0, 0)

    def chunks(self, arm: str, site: str) -> Iterator[tuple[Int[np.ndarray, " tokens"], Float[Tensor, "tokens width"]]]:
        """Row numbers and activations, a shard at a time, in the order of the shards."""
        for shard in self.shards:
            if shard["arm"] == arm and site in shard["sites"]:
                with self._open(shard) as tensors:
                    yield tensors.get_tensor(ROWS).numpy(), tensors.get_tensor(site)

    def _open(self, shard: dict[str, Any]) -> Any:
        try:
            return safe_open(self.folder / shard["file"], framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.folder / shard['file']}: cannot be read ({error}); run step 3 again") from error
