"""Attribution patching: an estimate of every edge's effect on the margin from one backward pass, the top ones verified.

An edge's effect is what the margin of the safe run gains when the reader sees what the writer wrote in the unsafe run.
To first order it is the writer's difference times the margin's gradient at the reader's input (Syed et al. 2023, arXiv
2310.10348, as in `transformer_lens.tools.analysis.attribution_patching`, whose edges refuse grouped-query attention).
One gradient misses saturated parts (arXiv 2403.00745): near a safe prompt a trained judge hardly moves, and only many
edges together move it. So gradients may be averaged over inputs on the way from the safe to the unsafe prompt (Hanna et
al. 2024, arXiv 2403.17806). The two serve different ends. In nine judges (three seeds, epochs 1 to 5) the rank
correlation with exact effects of single edges was 0.75 for the gradient at the safe prompt (0.63 to 0.92) and 0.36 for
the average (0.18 to 0.58), but the 128 edges that they rank first kept 44% of the gap on other pairs (0 to 163%) and
89% (53 to 125%); exact patching edge by edge chooses no better circuits than the former. So a circuit is chosen by the
average (`ALONG_THE_WAY`), and what is shown of its edges is measured again by `exact_edge_effects`. Looking for the
points where the margin turns was no better (91%, 64 to 165%). `benchmarks/advanced_pictures.py` measures this anew.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from src.utils.circuits.contrast import ContrastPairs, MarginOf
from src.utils.circuits.graph import PROJECTIONS, Graph, edit_projections, run_with_replaced, writes
from src.utils.sites import AnyModel, Edit, Site, blocks_of, decoder_of, edit_sites

SAFE_ALONE = (0.0,)
ALONG_THE_WAY = (0.1, 0.3, 0.5, 0.7, 0.9)
BOTH_ENDS = (0.0, 1.0)  # away from the steep part of the way: repeated on other pairs it gives nearly the same


def edge_attributions(
    model: AnyModel, margin_of: MarginOf, graph: Graph, pairs: ContrastPairs, points: Sequence[float] = SAFE_ALONE
) -> Float32[np.ndarray, "pairs readers writers"]:
    """Estimated effects in logits, summed over tokens; 0 where there is no edge.

    `points` are where gradients are taken, one backward pass each: 0 at the safe prompt's embeddings, 1 at the unsafe
    one's, between them on the straight line.
    A writer's sum over its readers is the attribution of the node. Works on whatever requires a gradient or not, and
    leaves no gradient on the weights.
    """
    pairs = pairs.to(decoder_of(model).device)
    _, of_safe = writes(model, margin_of, graph, pairs.safe, pairs.mask)
    _, of_unsafe = writes(model, margin_of, graph, pairs.unsafe, pairs.mask)
    moved = of_unsafe - of_safe
    parts = (attributed_at(model, margin_of, graph, pairs, of_safe[0] + point * moved[0], moved) for point in points)
    return (sum(parts, torch.zeros(())) / len(points)).numpy()


def attributed_at(
    model: AnyModel,
    margin_of: MarginOf,
    graph: Graph,
    pairs: ContrastPairs,
    embedded: Float[Tensor, "pairs seq d_model"],
    moved: Float[Tensor, "writers pairs seq d_model"],
) -> Float[Tensor, "pairs readers writers"]:
    """What each writer's difference adds to the margin by the gradients of one forward pass, summed over tokens."""
    found = torch.zeros((len(pairs), len(graph.readers), len(graph.writers)))

    def keep(rows: slice, count: int, gradient: Float[Tensor, "readers batch seq d_model"]) -> None:
        found[:, rows, :count] = torch.einsum("wbsd,rbsd->brw", moved[:count], gradient).float().cpu()

    streams, outputs, inputs, gradients = gradients_at(model, margin_of, graph, pairs, embedded)
    for layer, block in enumerate(blocks_of(decoder_of(model))):
        keep(graph.group("mlp", layer), graph.upstream("mlp", layer), gradients[inputs[layer]][None])
        for kind in PROJECTIONS:
            own = gradients[outputs[kind, layer]]
            gradient = gradient_at_stream(block, kind, streams[layer], own, graph.heads_of(kind))
            keep(graph.group(kind, layer), graph.upstream(kind, layer), gradient)
    keep(graph.group("logits", graph.n_layers), graph.upstream("logits"), gradients[inputs[graph.n_layers]][None])
    return found


def gradients_at(
    model: AnyModel,
    margin_of: MarginOf,
    graph: Graph,
    pairs: ContrastPairs,
    embedded: Float[Tensor, "pairs seq d_model"],
) -> tuple[dict[int, Tensor], dict[tuple[str, int], int], dict[int, int], list[Tensor]]:
    """Each block's input, and the margin's gradients at projections' outputs and at the inputs of MLPs and logits.

    `embedded` takes the place of the first block's input.
    The two dictionaries in the middle say where in the list of gradients each one stands.
    """
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

    def projecting(kind: str, layer: int):
        def edit(module: nn.Module, output: Tensor) -> None:
            outputs[kind, layer] = len(watched)
            watched.append(output)

        return edit

    layers = range(graph.n_layers)
    edits = (
        {Site("resid_pre", layer): stream(layer) if layer else start for layer in layers}
        | {Site("resid_mid", layer): reading(layer) for layer in layers}
        | {Site("resid_post", graph.n_layers - 1): reading(graph.n_layers)}
    )
    projections = [(kind, layer, projecting(kind, layer)) for layer in layers for kind in PROJECTIONS]
    with torch.enable_grad(), edit_sites(decoder_of(model), edits), edit_projections(model, projections):
        margin = margin_of(pairs.safe, pairs.mask).sum()
        gradients = torch.autograd.grad(margin, watched)
    return streams, outputs, inputs, list(gradients)


def gradient_at_stream(
    block: nn.Module,
    kind: str,
    stream: Float[Tensor, "batch seq d_model"],
    gradient: Float[Tensor, "batch seq width"],
    n_heads: int,
) -> Float[Tensor, "readers batch seq d_model"]:
    """From a projection's output back through projection and norm to the residual stream, each head for itself."""
    project = block.get_submodule(f"self_attn.{kind}_proj").forward
    norm = block.get_submodule("input_layernorm")
    with torch.enable_grad():
        seen = stream[None].repeat(n_heads, 1, 1, 1).requires_grad_()
        output = project(norm(seen))
        parts = gradient.unflatten(-1, (n_heads, -1))
        alone = torch.zeros_like(output).unflatten(-1, (n_heads, -1))
        for head in range(n_heads):
            alone[head, ..., head, :] = parts[..., head, :]
        (found,) = torch.autograd.grad(output, seen, alone.flatten(-2))
    return found


def exact_edge_effects(
    model: AnyModel, margin_of: MarginOf, graph: Graph, pairs: ContrastPairs, edges: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "edges pairs"]:
    """Measured effects of single edges, (reader, writer) by number: one forward pass each."""
    return patched_effects(model, margin_of, graph, pairs, [only(graph, [edge]) for edge in edges])


def exact_node_effects(
    model: AnyModel, margin_of: MarginOf, graph: Graph, pairs: ContrastPairs, writers: Sequence[int]
) -> Float[np.ndarray, "nodes pairs"]:
    """Measured effects of whole nodes: every reader sees the unsafe run's, at once."""
    masks = []
    for writer in writers:
        mask = np.zeros_like(graph.edges)
        mask[:, writer] = graph.edges[:, writer]
        masks.append(mask)
    return patched_effects(model, margin_of, graph, pairs, masks)


def patched_effects(
    model: AnyModel,
    margin_of: MarginOf,
    graph: Graph,
    pairs: ContrastPairs,
    masks: Sequence[Bool[np.ndarray, "readers writers"]],
) -> Float[np.ndarray, "masks pairs"]:
    """What the safe run's margin gains when the edges of a mask carry the unsafe run's."""
    pairs = pairs.to(decoder_of(model).device)
    safe, _ = writes(model, margin_of, graph, pairs.safe, pairs.mask)
    _, source = writes(model, margin_of, graph, pairs.unsafe, pairs.mask)
    found = [run_with_replaced(model, margin_of, graph, pairs.safe, pairs.mask, mask, source) - safe for mask in masks]
    return torch.stack(found).double().cpu().numpy() if found else np.zeros((0, len(pairs)))


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
