"""A model as a graph: what writes into the residual stream, what reads from it, and runs with some edges replaced.

Writers are the embeddings, each attention head and each MLP; readers are each head's query, each key-value head's key
and value, each MLP and the logits. With grouped-query attention several query heads share a key and a value, so that
keys and values are readers of their own; without it there is one a head, as in TransformerLens's edge attribution.

The residual stream is a sum, so that a reader's input with one writer replaced is exact: what it is now, minus what
the writer wrote now, plus what it is to have written. Nothing else of the run is held fixed: effects spread.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from src.utils.circuits.contrast import MarginOf
from src.utils.errors import UserError
from src.utils.sites import AnyModel, Edit, Site, blocks_of, count_layers, decoder_of, edit_sites, has_norms_after

ReaderKind = Literal["q", "k", "v", "mlp", "logits"]
PROJECTIONS: tuple[Literal["q", "k", "v"], ...] = ("q", "k", "v")


@dataclass(frozen=True)
class Writer:
    kind: Literal["embed", "head", "mlp"]
    layer: int = 0
    head: int = 0

    @property
    def name(self) -> str:
        names = {"embed": "embeddings", "head": f"L{self.layer}H{self.head}", "mlp": f"MLP{self.layer}"}
        return names[self.kind]


@dataclass(frozen=True)
class Reader:
    """`head` counts query heads for q and key-value heads for k and v."""

    kind: ReaderKind
    layer: int = 0
    head: int = 0

    @property
    def name(self) -> str:
        if self.kind in ("mlp", "logits"):
            return f"MLP{self.layer}" if self.kind == "mlp" else "logits"
        return f"L{self.layer}{'H' if self.kind == 'q' else 'KV'}{self.head}.{self.kind}"


@dataclass(frozen=True)
class Graph:
    """The sizes of a model and, in the order of the forward pass, its writers and readers."""

    n_layers: int
    n_heads: int
    n_kv_heads: int

    @classmethod
    def of(cls, model: AnyModel) -> "Graph":
        """Raises `UserError` for blocks whose attention is normalised before it is added: heads do not add up there."""
        decoder = decoder_of(model)
        if any(has_norms_after(block) for block in blocks_of(decoder)):
            raise UserError(f"{type(decoder).__name__}: its blocks normalise what heads write; no edges can be drawn")
        config = decoder.config
        return cls(count_layers(model), config.num_attention_heads, config.num_key_value_heads)

    @cached_property
    def writers(self) -> list[Writer]:
        found = [Writer("embed")]
        for layer in range(self.n_layers):
            found += [Writer("head", layer, head) for head in range(self.n_heads)]
            found.append(Writer("mlp", layer))
        return found

    @cached_property
    def readers(self) -> list[Reader]:
        found: list[Reader] = []
        for layer in range(self.n_layers):
            for kind in PROJECTIONS:
                found += [Reader(kind, layer, head) for head in range(self.heads_of(kind))]
            found.append(Reader("mlp", layer))
        return [*found, Reader("logits", self.n_layers)]

    def heads_of(self, kind: Literal["q", "k", "v"]) -> int:
        return self.n_heads if kind == "q" else self.n_kv_heads

    def group(self, kind: ReaderKind, layer: int = 0) -> slice:
        """Where the readers of a kind and layer stand among all."""
        start = layer * (self.n_heads + 2 * self.n_kv_heads + 1)
        sizes = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads, "mlp": 1, "logits": 1}
        for other in ("q", "k", "v", "mlp"):
            if other == kind or kind == "logits":
                break
            start += sizes[other]
        return slice(start, start + sizes[kind]) if kind != "logits" else slice(len(self.readers) - 1, None)

    def upstream(self, kind: ReaderKind, layer: int = 0) -> int:
        """How many of the writers such a reader can read from; they are the first ones."""
        if kind == "logits":
            return len(self.writers)
        return 1 + layer * (self.n_heads + 1) + (self.n_heads if kind == "mlp" else 0)

    @cached_property
    def edges(self) -> Bool[np.ndarray, "readers writers"]:
        """Which pairs are an edge."""
        found = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for row, reader in enumerate(self.readers):
            found[row, : self.upstream(reader.kind, reader.layer)] = True
        return found


Written = list[Float[Tensor, "batch seq d_model"]]


def write_edits(model: AnyModel, graph: Graph, written: Written) -> dict[Site, Edit]:
    """Edits that change nothing and append to `written`, in the order of the writers, what each writes."""
    blocks = blocks_of(decoder_of(model))

    def plain(hidden: Tensor) -> None:
        written.append(hidden)

    def heads(block: nn.Module) -> Edit:
        def edit(z: Float[Tensor, "batch seq width"]) -> None:
            written.extend(head_outputs(block, z, graph.n_heads))

        return edit

    found: dict[Site, Edit] = {Site("resid_pre", 0): plain}
    for layer, block in enumerate(blocks):
        found |= {Site("attn.z", layer): heads(block), Site("mlp_out", layer): plain}
    return found


def head_outputs(
    block: nn.Module, z: Float[Tensor, "batch seq width"], n_heads: int
) -> list[Float[Tensor, "batch seq d_model"]]:
    """What each head writes; adapters on the output projection are counted, its bias is not."""
    project = block.get_submodule("self_attn.o_proj").forward  # past the hooks on the module
    parts = z.unflatten(-1, (n_heads, -1))
    alone = torch.zeros_like(parts)[None].repeat(n_heads, 1, 1, 1, 1)
    for head in range(n_heads):
        alone[head, ..., head, :] = parts[..., head, :]
    nothing = project(torch.zeros_like(z[:1, :1]))
    return list(project(alone.flatten(-2)) - nothing)


@torch.no_grad()
def writes(
    model: AnyModel, margin_of: MarginOf, graph: Graph, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "writers batch seq d_model"]]:
    """Margins and what every writer writes."""
    written: Written = []
    with edit_sites(decoder_of(model), write_edits(model, graph, written)):
        margin = margin_of(ids, mask)
    return margin, torch.stack(written)


@torch.no_grad()
def run_with_replaced(
    model: AnyModel,
    margin_of: MarginOf,
    graph: Graph,
    ids: Int[Tensor, "batch seq"],
    mask: Int[Tensor, "batch seq"],
    replaced: Bool[np.ndarray, "readers writers"],
    replacement: Float[Tensor, "writers batch seq d_model"],
) -> Float[Tensor, " batch"]:
    """Margins where, on each edge in `replaced`, the reader sees `replacement` and not what the writer wrote."""
    decoder = decoder_of(model)
    written: Written = []
    edits = write_edits(model, graph, written)
    streams: dict[int, Tensor] = {}

    def changes(kind: ReaderKind, layer: int) -> Float[Tensor, "readers batch seq d_model"] | None:
        """What is added to the input of each reader of a group; None if nothing."""
        rows, count = graph.group(kind, layer), graph.upstream(kind, layer)
        chosen = replaced[rows, :count]
        if not chosen.any():
            return None
        columns = np.flatnonzero(chosen.any(axis=0))
        moved = torch.stack([replacement[at] - written[at] for at in columns])
        weights = torch.from_numpy(chosen[:, columns]).to(moved)
        return torch.einsum("rw,wbsd->rbsd", weights, moved)

    def reading(kind: Literal["mlp", "logits"], layer: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor | None:
            found = changes(kind, layer)
            return None if found is None else hidden + found[0]

        return edit

    def projecting(kind: Literal["q", "k", "v"], layer: int) -> Callable[[nn.Module, Tensor], Tensor | None]:
        norm = blocks_of(decoder)[layer].get_submodule("input_layernorm")

        def edit(module: nn.Module, output: Tensor) -> Tensor | None:
            found = changes(kind, layer)
            if found is None:
                return None
            n_heads = graph.heads_of(kind)
            heads = module.forward(norm(streams[layer] + found)).unflatten(-1, (n_heads, -1))
            own = torch.arange(n_heads, device=output.device)
            return heads[own, :, :, own].movedim(0, 2).flatten(-2)

        return edit

    def keep_stream(layer: int) -> Edit:
        before = edits.get(Site("resid_pre", layer))

        def edit(hidden: Tensor) -> None:
            streams[layer] = hidden
            if before is not None:
                before(hidden)

        return edit

    stays = {Site("resid_pre", layer): keep_stream(layer) for layer in range(graph.n_layers)}
    reads = {Site("resid_mid", layer): reading("mlp", layer) for layer in range(graph.n_layers)}
    ends = {Site("resid_post", graph.n_layers - 1): reading("logits", graph.n_layers)}
    with (
        edit_sites(decoder, edits | stays | reads | ends),
        edit_projections(
            model, [(k, layer, projecting(k, layer)) for layer in range(graph.n_layers) for k in PROJECTIONS]
        ),
    ):
        return margin_of(ids, mask)


@contextmanager
def edit_projections(
    model: AnyModel,
    edits: Sequence[tuple[Literal["q", "k", "v"], int, Callable[[nn.Module, Tensor], Tensor | None]]],
) -> Generator[None]:
    """While open, each edit sees the output of a projection and may give another in its place."""
    blocks = blocks_of(decoder_of(model))
    handles: list[RemovableHandle] = []
    try:
        for kind, layer, edit in edits:
            module = blocks[layer].get_submodule(f"self_attn.{kind}_proj")
            handles.append(module.register_forward_hook(lambda own, args, output, edit=edit: edit(own, output)))
        yield
    finally:
        for handle in handles:
            handle.remove()
