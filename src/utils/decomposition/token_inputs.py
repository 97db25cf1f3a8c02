"""What a decomposition is fitted on, token by token: a shard of step 3's tokens in memory at a time, never all of them.

The same kinds as in `inputs`, but for differences between two texts, whose tokens do not correspond.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int
from torch import Tensor

from src.utils.decomposition.inputs import flagged_rows, name_of, sites_of_layers
from src.utils.errors import UserError
from src.utils.sites import Site, parse_site
from src.utils.token_shards import TokenReader

TOKEN_ARMS = {"em": ("em",), "base_on_em": ("base_on_em",), "em_minus_base_on_em": ("em", "base_on_em")}


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Some tokens: each one's row in the study's frame, its place in the answer (from 0), and its features."""

    rows: Int[np.ndarray, " tokens"]
    places: Int[np.ndarray, " tokens"]
    matrix: Float32[np.ndarray, "tokens features"]


@dataclass(frozen=True, eq=False)
class TokenEvidence:
    """The answer tokens of `rows` of the study's frame; every call of `blocks` reads the shards again."""

    name: str
    reader: TokenReader
    arms: tuple[str, ...]
    sites: tuple[Site, ...]
    scales: tuple[float, ...]
    rows: Int[np.ndarray, " rows"]

    def blocks(self) -> Iterator[TokenBlock]:
        """A shard at a time, in the order of the shards, without tokens that are not finite; none is empty."""
        for rows, layers in self.by_layer():
            scaled = [layer / np.float32(scale) for layer, scale in zip(layers, self.scales, strict=True)]
            matrix = scaled[0] if len(scaled) == 1 else np.concatenate(scaled, axis=1)
            is_finite = np.isfinite(matrix).all(axis=1)
            if is_finite.any():
                yield TokenBlock(rows[is_finite], places_of(rows)[is_finite], matrix[is_finite])

    def matrices(self) -> Iterator[Float32[np.ndarray, "tokens features"]]:
        """The features alone, as `streaming` takes them: `streaming_pca(evidence.matrices, 50)`."""
        return (block.matrix for block in self.blocks())

    def by_layer(self) -> Iterator[tuple[Int[np.ndarray, " tokens"], list[Float32[np.ndarray, "tokens width"]]]]:
        """Row numbers and each site's activations or differences, unscaled, of the tokens whose rows are kept."""
        if len(self.arms) == 1:
            for _, rows, layers in numbered_shards(self.reader, self.arms[0], self.sites):
                chosen = np.isin(rows, self.rows)
                yield rows[chosen], [as_float32(layer)[chosen] for layer in layers]
            return
        first, second = (numbered_shards(self.reader, arm, self.sites) for arm in self.arms)
        for number, (rows, ours), (other_rows, theirs) in joined(first, second):
            kept = np.intersect1d(np.intersect1d(rows, other_rows), self.rows)
            chosen, other = np.isin(rows, kept), np.isin(other_rows, kept)
            if not np.array_equal(rows[chosen], other_rows[other]):
                raise UserError(
                    f"{self.reader.folder}: shards {number} of {' and '.join(self.arms)} hold other tokens; run step 3 "
                    "again"
                )
            differences = [as_float32(a)[chosen] - as_float32(b)[other] for a, b in zip(ours, theirs, strict=True)]
            yield rows[chosen], differences


def token_evidence(
    frame: pd.DataFrame,
    reader: TokenReader,
    kind: str,
    layers: Sequence[int],
    drop_flagged: bool = True,
    site: str = "resid",
) -> TokenEvidence:
    """The tokens of a study's answers at some layers of a site, read when they are asked for.

    `kind`: `em`; `em_minus_base_on_em`, on identical tokens; `base_on_em`, the base model on the EM model's answers.
    Rows are dropped as in `build_evidence`. Several layers are each divided by their mean token norm, for which the
    shards are read once here. Raises `UserError` for an unknown kind or layer, and where frame and shards are of two
    studies.
    """
    if kind not in TOKEN_ARMS:
        raise UserError(f"evidence {kind!r}: has no tokens of its own; there are {', '.join(TOKEN_ARMS)}", 2)
    if reader.n_rows != len(frame):
        raise UserError(f"{reader.folder}: tokens of {reader.n_rows} rows, the frame has {len(frame)}; take one run's")
    arms, layers = TOKEN_ARMS[kind], tuple(dict.fromkeys(layers))
    sites = tuple(sites_of_layers({parse_site(name) for name in reader.sites}, layers, site))
    dropped = flagged_rows(frame, arms) if drop_flagged else np.zeros(len(frame), dtype=bool)
    name = f"{name_of(kind, layers, site)}_tokens"
    evidence = TokenEvidence(name, reader, arms, sites, (1.0,) * len(sites), np.flatnonzero(~dropped))
    return evidence if len(sites) == 1 else replace(evidence, scales=mean_norms(evidence))


def mean_norms(evidence: TokenEvidence) -> tuple[float, ...]:
    """Each site's mean norm over the tokens that are finite; 1 where it is zero, so that zeros stay zeros."""
    sums, tokens = np.zeros(len(evidence.sites)), 0
    for _, layers in evidence.by_layer():
        norms = np.stack([np.linalg.norm(layer, axis=1) for layer in layers]).astype(np.float64)
        is_finite = np.isfinite(norms).all(axis=0)
        sums += norms[:, is_finite].sum(axis=1)
        tokens += int(is_finite.sum())
    return tuple(float(total) / tokens if total > 0 else 1.0 for total in sums)


def numbered_shards(
    reader: TokenReader, arm: str, sites: Sequence[Site]
) -> Iterator[tuple[str, Int[np.ndarray, " tokens"], list[Tensor]]]:
    """The batch number, row numbers and each site's activations of an arm's shards that have any, in their order."""
    wanted = [site.name for site in sites]
    held = [one for one in reader.shards if one["arm"] == arm and set(wanted) <= set(one["sites"])]
    for shard, *layers in zip(held, *(reader.chunks(arm, name) for name in wanted), strict=True):
        yield Path(shard["file"]).stem.rsplit("-", 1)[1], layers[0][0], [values for _, values in layers]


def joined(
    first: Iterator[tuple[str, np.ndarray, list[Tensor]]], second: Iterator[tuple[str, np.ndarray, list[Tensor]]]
) -> Iterator[tuple[str, tuple[np.ndarray, list[Tensor]], tuple[np.ndarray, list[Tensor]]]]:
    """Shards of one batch from two arms, both in the order of batches; a batch that one arm lost is passed over."""
    ours, theirs = next(first, None), next(second, None)
    while ours is not None and theirs is not None:
        if ours[0] == theirs[0]:
            yield ours[0], ours[1:], theirs[1:]
        is_ours_next, is_theirs_next = ours[0] <= theirs[0], theirs[0] <= ours[0]
        ours = next(first, None) if is_ours_next else ours
        theirs = next(second, None) if is_theirs_next else theirs


def as_float32(values: Tensor) -> Float32[np.ndarray, "tokens width"]:
    return values.float().numpy()


def places_of(rows: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """How many tokens of the same row stand before each; a row's tokens stand together."""
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    return np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
