"""Runs of a model as a graph: what each writer wrote, and runs in which some edges carry what another run wrote.

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

from src.utils.circuits.contrast import ContrastPairs, Margin, MarginOf
from src.utils.circuits.graph import PROJECTIONS, Graph, ReaderKind
from src.utils.circuits.partial_passes import after_common_start, resumed_at
from src.utils.sites import AnyModel, Edit, Site, blocks_of, decoder_of, edit_sites, resid_site

ProjectionEdit = tuple[Literal["q", "k", "v"], int, Callable[[nn.Module, Tensor], Tensor | None]]


@dataclass(frozen=True, eq=False)
class GraphRun:
    """One run. `streams` are those into each block and, last, out of the last one."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    margins: Float[Tensor, " batch"]
    written: Float[Tensor, "writers batch seq d_model"]
    streams: Sequence[Float[Tensor, "batch seq d_model"]]


@dataclass(frozen=True, eq=False)
class PairRuns:
    """Both runs of some pairs, without the columns before the first in which any of them differs.

    Every edge carries the same there, so that nothing that is exchanged between the runs is left out.
    """

    model: AnyModel
    graph: Graph
    margin_of: MarginOf
    safe: GraphRun
    unsafe: GraphRun

    @classmethod
    def of(cls, margin: Margin, graph: Graph, pairs: ContrastPairs) -> "PairRuns":
        columns, own = after_common_start(margin, pairs.to(decoder_of(margin.model).device))
        safe, unsafe = (run_graph(margin.model, columns, graph, ids, own.mask) for ids in (own.safe, own.unsafe))
        return cls(margin.model, graph, columns, safe, unsafe)

    def __len__(self) -> int:
        return len(self.safe.margins)

    @cached_property
    def scratch(self) -> Float[Tensor, "writers pairs seq d_model"]:
        """Room that one pass with replaced edges after the other writes over; attribution needs none."""
        return torch.zeros_like(self.safe.written)


@dataclass(frozen=True, eq=False)
class BatchedRuns:
    """Runs of some pairs, of so many at once; what one batch needs is kept, of several it is made again each time.

    What the writers of a large model write on one pair may be all that there is room for.
    """

    margin: Margin
    graph: Graph
    pairs: ContrastPairs
    at_once: int

    def each(self, measure: Callable[[PairRuns], np.ndarray]) -> list[np.ndarray]:
        """What is measured on each batch; its runs are gone before the next one's are made."""
        if len(self.pairs) <= self.at_once:
            return [measure(self.only)]
        starts = range(0, len(self.pairs), self.at_once)
        return [measure(self.made(slice(start, start + self.at_once))) for start in starts]

    @cached_property
    def only(self) -> PairRuns:
        return self.made(slice(None))

    def made(self, rows: slice) -> PairRuns:
        return PairRuns.of(self.margin, self.graph, self.pairs.part(rows))


@torch.no_grad()
def run_graph(
    model: AnyModel, margin_of: MarginOf, graph: Graph, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
) -> GraphRun:
    """Margins and what every writer writes."""
    decoder = decoder_of(model)
    written: list[Tensor] = []
    streams: list[Tensor] = []

    def heads(block: nn.Module) -> Edit:
        def edit(z: Float[Tensor, "batch seq width"]) -> None:
            written.extend(head_outputs(block, z, graph.n_heads))

        return edit

    edits: dict[Site, Edit] = {resid_site(layer, graph.n_layers): streams.append for layer in range(graph.n_layers + 1)}
    for layer, block in enumerate(blocks_of(decoder)):
        edits |= {Site("attn.z", layer): heads(block), Site("mlp_out", layer): written.append}
    with edit_sites(decoder, edits):
        margins = margin_of(ids, mask)
    return GraphRun(ids, mask, margins, torch.stack([streams[0], *written]), streams)


@torch.no_grad()
def run_with_replaced(
    runs: PairRuns,
    into: GraphRun,
    replaced: Bool[np.ndarray, "readers writers"],
    replacement: Float[Tensor, "writers batch seq d_model"],
) -> Float[Tensor, " batch"]:
    """Margins of a run where, on each edge in `replaced`, the reader sees `replacement` and not what the writer wrote.

    Blocks before the first such reader are not run: they do what they did.
    """
    if not replaced.any():
        return into.margins
    graph, decoder = runs.graph, decoder_of(runs.model)
    blocks = blocks_of(decoder)
    first = graph.readers[int(replaced.any(axis=1).argmax())].layer
    used = np.asarray(replaced.any(axis=0))
    moved = runs.scratch  # where it is used: what the writer is to have written minus what it wrote
    known = np.flatnonzero(used[: graph.upstream("q", first)])
    moved[known] = replacement[known] - into.written[known]
    streams: dict[int, Tensor] = {}

    def added(kind: ReaderKind, layer: int) -> tuple[np.ndarray, Float[Tensor, "readers batch seq d_model"]]:
        """Which readers of a group see something else, and what is added to the input of each."""
        count = graph.upstream(kind, layer)
        chosen = replaced[graph.group(kind, layer), :count]
        readers, writers = np.flatnonzero(chosen.any(axis=1)), np.flatnonzero(chosen.any(axis=0))
        if 2 * len(writers) > count:
            writers = np.arange(count)  # a product over all of them is cheaper than to pick most
        sources = moved[:count] if len(writers) == count else moved[writers]
        weights = torch.from_numpy(chosen[np.ix_(readers, writers)]).to(moved)
        return readers, torch.einsum("rw,wbsd->rbsd", weights, sources)

    def reading(kind: Literal["mlp", "logits"], layer: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor | None:
            readers, found = added(kind, layer)
            return hidden + found[0] if len(readers) else None

        return edit

    def projecting(kind: Literal["q", "k", "v"], layer: int) -> ProjectionEdit:
        norm = blocks[layer].get_submodule("input_layernorm")

        def edit(module: nn.Module, output: Tensor) -> Tensor | None:
            readers, found = added(kind, layer)
            if not len(readers):
                return None
            weight, bias = linear_map(module, found.new_zeros(1, found.shape[-1]))
            n_heads = graph.heads_of(kind)
            own = torch.einsum(
                "rbsd,drk->bsrk", norm(streams[layer] + found), weight.unflatten(1, (n_heads, -1))[:, readers]
            )
            heads = output.unflatten(-1, (n_heads, -1)).clone()
            heads[:, :, readers] = (own + bias.unflatten(0, (n_heads, -1))[readers]).to(heads)
            return heads.flatten(-2)

        return kind, layer, edit

    def keep_stream(layer: int) -> Edit:
        def edit(hidden: Tensor) -> None:
            streams[layer] = hidden

        return edit

    def writing_heads(layer: int) -> Edit:
        own = graph.heads_writing(layer)

        def edit(z: Tensor) -> None:
            if used[own].any():
                moved[own] = replacement[own] - head_outputs(blocks[layer], z, graph.n_heads)

        return edit

    def writing_mlp(layer: int) -> Edit:
        at = graph.heads_writing(layer).stop

        def edit(hidden: Tensor) -> None:
            if used[at]:
                moved[at] = replacement[at] - hidden

        return edit

    run = range(first, graph.n_layers)
    edits: dict[Site, Edit] = {Site("resid_post", graph.n_layers - 1): reading("logits", graph.n_layers)}
    for layer in run:
        edits |= {
            Site("resid_pre", layer): keep_stream(layer),
            Site("attn.z", layer): writing_heads(layer),
            Site("resid_mid", layer): reading("mlp", layer),
            Site("mlp_out", layer): writing_mlp(layer),
        }
    with (
        resumed_at(runs.model, first, into.streams[first]),
        edit_sites(decoder, edits),
        edit_projections(runs.model, [projecting(kind, layer) for layer in run for kind in PROJECTIONS]),
    ):
        return runs.margin_of(into.ids, into.mask)


@torch.no_grad()
def run_with_node(
    runs: PairRuns, into: GraphRun, writer: int, replacement: Float[Tensor, "batch seq d_model"]
) -> Float[Tensor, " batch"]:
    """Margins of a run where every reader of a writer sees `replacement`: it stands in the residual stream."""
    node = runs.graph.writers[writer]
    moved = replacement - into.written[writer]
    if node.kind == "head":
        start = resumed_at(runs.model, node.layer, into.streams[node.layer])
        edits: dict[Site, Edit] = {Site("attn_out", node.layer): lambda added: added + moved}
    else:
        layer = 0 if node.kind == "embed" else node.layer + 1
        start, edits = resumed_at(runs.model, layer, into.streams[layer] + moved), {}
    with start, edit_sites(decoder_of(runs.model), edits):
        return runs.margin_of(into.ids, into.mask)


def head_outputs(
    block: nn.Module, z: Float[Tensor, "batch seq width"], n_heads: int
) -> Float[Tensor, "n_heads batch seq d_model"]:
    """What each head writes; adapters on the output projection are counted, its bias is not."""
    weight, _ = linear_map(block.get_submodule("self_attn.o_proj"), z.new_zeros(1, z.shape[-1]))
    return torch.einsum("bshk,hkd->hbsd", z.unflatten(-1, (n_heads, -1)), weight.unflatten(0, (n_heads, -1)))


def linear_map(
    module: nn.Module, zeros: Float[Tensor, "1 wide_in"]
) -> tuple[Float[Tensor, "wide_in wide_out"], Float[Tensor, " wide_out"]]:
    """Weight and bias of a linear module as it acts, adapters and quantisation counted, past the hooks on it.

    What is no plain layer is differentiated: outputs of unit vectors minus a bias many times larger than the weights,
    as Qwen2's keys have, keep in bfloat16 little of the weights.
    """
    if type(module) is nn.Linear and "forward" not in vars(module):
        bias = zeros.new_zeros(len(module.weight)) if module.bias is None else module.bias.detach()
        return module.weight.detach().T, bias
    bias = module.forward(zeros)[0].detach()
    with torch.enable_grad():
        inputs = zeros.new_zeros(len(bias), zeros.shape[1]).requires_grad_()
        (weight,) = torch.autograd.grad(module.forward(inputs), inputs, torch.eye(len(bias)).to(bias))
    return weight.T, bias


@contextmanager
def edit_projections(model: AnyModel, edits: Sequence[ProjectionEdit]) -> Generator[None]:
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
