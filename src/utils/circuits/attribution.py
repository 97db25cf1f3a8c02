"""Attribution patching: an estimate of every edge's effect on the margin from one backward pass, the top ones verified.

An edge's effect is what the margin of the safe run gains when the reader sees what the writer wrote in the unsafe run.
To first order it is the writer's difference times the margin's gradient at the reader's input (Syed et al. 2023, arXiv
2310.10348, as in `transformer_lens.tools.analysis.attribution_patching`, whose edges refuse grouped-query attention).
One gradient misses saturated parts (arXiv 2403.00745): near a safe prompt a trained judge hardly moves, and only many
edges together move it. So gradients may be averaged over inputs on the way from the safe to the unsafe prompt (Hanna et
al. 2024, arXiv 2403.17806). The two serve different ends. In nine judges (three seeds, three
epochs each) the rank correlation with exact effects of single edges was 0.77 for the gradient at the safe prompt (0.65
to 0.86) and 0.26 for the average (0.15 to 0.42), but the 128 edges that they rank first kept 60% of the gap on other
pairs (14 to 100%) and 75% (32 to 101%), those of exact patching 71% (31 to 100%): edges that do little alone do much
together. So a circuit is chosen by the average (`ALONG_THE_WAY`), and what is shown of its edges is measured again by
`exact_edge_effects`. `benchmarks/advanced_pictures.py` measures this anew.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from src.utils.circuits.graph import PROJECTIONS, Graph, ReaderKind
from src.utils.circuits.runs import (
    PairRuns,
    ProjectionEdit,
    edit_projections,
    linear_map,
    run_with_node,
    run_with_replaced,
)
from src.utils.sites import Edit, Site, blocks_of, decoder_of, edit_sites

SAFE_ALONE = (0.0,)
ALONG_THE_WAY = (0.1, 0.3, 0.5, 0.7, 0.9)
BOTH_ENDS = (0.0, 1.0)  # away from the steep part of the way: repeated on other pairs it gives nearly the same


def edge_attributions(
    runs: PairRuns, points: Sequence[float] = SAFE_ALONE
) -> Float32[np.ndarray, "pairs readers writers"]:
    """Estimated effects in logits, summed over tokens; 0 where there is no edge.

    `points` are where gradients are taken, one backward pass each: 0 at the safe prompt's embeddings, 1 at the unsafe
    one's, between them on the straight line.
    A writer's sum over its readers is the attribution of the node. Works on whatever requires a gradient or not, and
    leaves no gradient on the weights.
    """
    moved = (runs.unsafe.written - runs.safe.written).transpose(0, 1).flatten(2)
    start, end = runs.safe.written[0], runs.unsafe.written[0]
    parts = (attributed_at(runs, start + point * (end - start), moved) for point in points)
    return (sum(parts, torch.zeros(())) / len(points)).numpy()


def attributed_at(
    runs: PairRuns, embedded: Float[Tensor, "pairs seq d_model"], moved: Float[Tensor, "pairs writers seq*d_model"]
) -> Float[Tensor, "pairs readers writers"]:
    """What each writer's difference adds to the margin by the gradients of one forward pass, summed over tokens."""
    graph = runs.graph
    found = torch.zeros((len(runs), len(graph.readers), len(graph.writers)))

    def keep(kind: ReaderKind, layer: int, gradient: Float[Tensor, "readers batch seq d_model"]) -> None:
        count = graph.upstream(kind, layer)
        own = gradient.transpose(0, 1).flatten(2).to(moved) @ moved[:, :count].transpose(1, 2)
        found[:, graph.group(kind, layer), :count] = own.float().cpu()

    streams, outputs, inputs, gradients = gradients_at(runs, embedded)
    for layer, block in enumerate(blocks_of(decoder_of(runs.model))):
        keep("mlp", layer, gradients[inputs[layer]][None])
        for kind in PROJECTIONS:
            own = gradients[outputs[kind, layer]]
            keep(kind, layer, gradients_at_stream(block, kind, streams[layer], own, graph.heads_of(kind)))
    keep("logits", graph.n_layers, gradients[inputs[graph.n_layers]][None])
    return found


def gradients_at(
    runs: PairRuns, embedded: Float[Tensor, "pairs seq d_model"]
) -> tuple[dict[int, Tensor], dict[tuple[str, int], int], dict[int, int], list[Tensor]]:
    """Each block's input, and the margin's gradients at projections' outputs and at the inputs of MLPs and logits.

    `embedded` takes the place of the first block's input.
    The two dictionaries in the middle say where in the list of gradients each one stands.
    """
    graph = runs.graph
    streams: dict[int, Tensor] = {}
    outputs: dict[tuple[str, int], int] = {}
    inputs: dict[int, int] = {}
    watched: list[Tensor] = []

    def start(hidden: Tensor) -> Tensor:
        streams[0] = embedded.detach()
        return streams[0].clone().requires_grad_()  # also where every weight is frozen

    def stream(layer: int) -> Edit:
        def edit(hidden: Tensor) -> None:
            streams[layer] = hidden.detach()

        return edit

    def reading(layer: int) -> Edit:
        def edit(hidden: Tensor) -> Tensor:
            copy = hidden.clone()  # what the reader alone sees: the residual stream goes on without it
            inputs[layer] = len(watched)
            watched.append(copy)
            return copy

        return edit

    def projecting(kind: Literal["q", "k", "v"], layer: int) -> ProjectionEdit:
        def edit(module: nn.Module, output: Tensor) -> None:
            outputs[kind, layer] = len(watched)
            watched.append(output)

        return kind, layer, edit

    layers = range(graph.n_layers)
    edits = (
        {Site("resid_pre", layer): stream(layer) if layer else start for layer in layers}
        | {Site("resid_mid", layer): reading(layer) for layer in layers}
        | {Site("resid_post", graph.n_layers - 1): reading(graph.n_layers)}
    )
    projections = [projecting(kind, layer) for layer in layers for kind in PROJECTIONS]
    with torch.enable_grad(), edit_sites(decoder_of(runs.model), edits), edit_projections(runs.model, projections):
        margin = runs.margin_of(runs.safe.ids, runs.safe.mask).sum()
        gradients = torch.autograd.grad(margin, watched)
    return streams, outputs, inputs, list(gradients)


def gradients_at_stream(
    block: nn.Module,
    kind: Literal["q", "k", "v"],
    stream: Float[Tensor, "batch seq d_model"],
    gradient: Float[Tensor, "batch seq width"],
    n_heads: int,
) -> Float[Tensor, "readers batch seq d_model"]:
    """From a projection's output back through projection and norm to the residual stream, each head for itself."""
    norm = block.get_submodule("input_layernorm")
    with torch.no_grad():
        weight, _ = linear_map(block.get_submodule(f"self_attn.{kind}_proj"), stream.new_zeros(1, stream.shape[-1]))
        heads = gradient.to(weight).unflatten(-1, (n_heads, -1))  # of fewer bits under autocast
        at_norm = torch.einsum("bshk,dhk->hbsd", heads, weight.unflatten(1, (n_heads, -1)))
    with torch.enable_grad():
        seen = stream.detach().requires_grad_()
        normed = norm(seen)
    return torch.stack([torch.autograd.grad(normed, seen, one, retain_graph=True)[0] for one in at_norm])


def exact_edge_effects(runs: PairRuns, edges: Sequence[tuple[int, int]]) -> Float[np.ndarray, "edges pairs"]:
    """Measured effects of single edges, (reader, writer) by number: what the safe run's margin gains, a pass each."""
    masks = (only(runs.graph, [edge]) for edge in edges)
    return gains(runs, [run_with_replaced(runs, runs.safe, mask, runs.unsafe.written) for mask in masks])


def exact_node_effects(runs: PairRuns, writers: Sequence[int]) -> Float[np.ndarray, "nodes pairs"]:
    """Measured effects of whole nodes: every reader sees the unsafe run's, at once."""
    return gains(runs, [run_with_node(runs, runs.safe, writer, runs.unsafe.written[writer]) for writer in writers])


def gains(runs: PairRuns, margins: Sequence[Float[Tensor, " pairs"]]) -> Float[np.ndarray, "changes pairs"]:
    if not margins:
        return np.zeros((0, len(runs)))
    return (torch.stack([*margins]) - runs.safe.margins).double().cpu().numpy()


def only(graph: Graph, edges: Sequence[tuple[int, int]]) -> Bool[np.ndarray, "readers writers"]:
    """A mask of these edges."""
    mask = np.zeros_like(graph.edges)
    for reader, writer in edges:
        mask[reader, writer] = True
    return mask


def strongest_edges(effects: Float[np.ndarray, "readers writers"], graph: Graph, count: int) -> list[tuple[int, int]]:
    """The edges of largest absolute effect, strongest first, (reader, writer); edges without effect are left out."""
    strength = np.where(graph.edges, np.abs(effects), 0.0).ravel()
    order = np.argsort(-strength, kind="stable")[:count]
    return [(int(at // effects.shape[1]), int(at % effects.shape[1])) for at in order if strength[at] > 0]
