"""Layer patching: how much of the margin between the two of a pair one layer's activations carry, in both directions.

Denoising puts the unsafe run's activation into the safe run and counts what of the margin's gap appears, noising puts
the safe run's into the unsafe run and counts what is lost (Heimersheim & Nanda, arXiv 2404.15255). The first finds
what suffices, the second what is needed; they differ where there are backups or where several parts work together.
Every value is a forward pass, nothing is linearised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from src.utils.circuits.contrast import ContrastPairs, Margin, MarginOf, has_gap, margins
from src.utils.circuits.partial_passes import Columns, after_common_start, last_tokens, resumed_at
from src.utils.decomposition.prompt_resampling import prompt_weights
from src.utils.sites import AnyModel, Edit, Site, count_layers, decoder_of, edit_sites, resid_site

# The stream is patched at some tokens only: at all of them it decides the margin alone, and every layer recovers 100%.
LAST, DIFFERING, ATTENTION, MLP = "last_token", "differing_tokens", "attention", "mlp"
KINDS = (LAST, DIFFERING, ATTENTION, MLP)
BLOCK_SITES = {ATTENTION: "attn_out", MLP: "mlp_out"}
RESAMPLES = 500

Shares = Float[np.ndarray, "resamples layers"]


@dataclass(frozen=True, eq=False)
class LayerPatching:
    """Margins in logits, a column a pair.

    `denoised[kind]` are those of the safe run with one layer of the unsafe run, `noised[kind]` the reverse. Kinds
    `last_token` and `differing_tokens` patch the residual stream there (layers 0 to n_layers, numbered as Hugging
    Face's `hidden_states`), `attention` and `mlp` what block l adds, at every token.
    """

    safe: Float[np.ndarray, " pairs"]
    unsafe: Float[np.ndarray, " pairs"]
    denoised: Mapping[str, Float[np.ndarray, "layers pairs"]]
    noised: Mapping[str, Float[np.ndarray, "layers pairs"]]

    @property
    def is_readable(self) -> bool:
        return has_gap(self.safe, self.unsafe)

    def shares(self, kind: str, weights: Float[np.ndarray, "resamples pairs"]) -> tuple[Shares, Shares]:
        """Share of the gap that appears (denoising) and that is lost (noising), for each weighting of the pairs.

        Sums over pairs are divided, not pair by pair: a pair with hardly a gap would have any share at all.
        """
        gap = weights @ (self.unsafe - self.safe)
        found = weights @ (self.denoised[kind] - self.safe).T, weights @ (self.unsafe - self.noised[kind]).T
        return found[0] / gap[:, None], found[1] / gap[:, None]

    def resampled(self, kind: str, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Shares, Shares]:
        """Shares of all pairs, in the first row, and of bootstrap resamples of them."""
        count = len(self.safe)
        weights = prompt_weights(np.arange(count), resamples, np.random.default_rng(seed))
        return self.shares(kind, np.vstack([np.ones(count), weights]))


def patch_layers(margin: Margin, pairs: ContrastPairs) -> LayerPatching:
    """Patch every layer in every kind, all pairs at once: 4 n_layers + 2 sites, two partial passes each."""
    pairs = pairs.to(decoder_of(margin.model).device)
    columns, own = after_common_start(margin, pairs)
    safe, unsafe = (run_layers(margin.model, columns, ids, own.mask) for ids in (own.safe, own.unsafe))
    ends = last_tokens(margin, pairs.safe, pairs.mask), last_tokens(margin, pairs.unsafe, pairs.mask)
    return LayerPatching(
        safe.margins,
        unsafe.margins,
        patched_margins(columns, own, ends[0], safe, unsafe),
        patched_margins(columns, own, ends[1], unsafe, safe),
    )


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One run: the stream of each layer, and what attention and MLP of each block add."""

    ids: Int[Tensor, "pairs seq"]
    margins: Float[np.ndarray, " pairs"]
    streams: Sequence[Float[Tensor, "pairs seq d_model"]]
    added: Mapping[str, Sequence[Float[Tensor, "pairs seq d_model"]]]


def run_layers(model: AnyModel, margin_of: MarginOf, ids: Tensor, mask: Tensor) -> LayerRun:
    n_layers = count_layers(model)
    streams: list[Tensor] = []
    added: dict[str, list[Tensor]] = {kind: [] for kind in BLOCK_SITES}
    edits: dict[Site, Edit] = {resid_site(layer, n_layers): streams.append for layer in range(n_layers + 1)}
    for kind, site in BLOCK_SITES.items():
        edits |= {Site(site, block): added[kind].append for block in range(n_layers)}
    with edit_sites(decoder_of(model), edits):
        return LayerRun(ids, margins(margin_of, ids, mask), streams, added)


def patched_margins(
    columns: Columns, pairs: ContrastPairs, ends: Columns, into: LayerRun, source: LayerRun
) -> dict[str, Float[np.ndarray, "layers pairs"]]:
    """Margins of one run with each layer of another, in every kind; `ends` are the last tokens of the former.

    Blocks below the layer that is patched are not run again, and at the last token nothing else is.
    """
    model, n_layers = columns.margin.model, len(into.streams) - 1
    layers, blocks = range(n_layers + 1), range(n_layers)
    places = ends.positions - (ends.whole.shape[1] - pairs.mask.shape[1])

    def exchanged(layer: int, where: Bool[Tensor, "pairs seq"]) -> Float[Tensor, "pairs seq d_model"]:
        return torch.where(where[..., None], source.streams[layer], into.streams[layer])

    def from_layer(layer: int, stream: Tensor, edits: Mapping[Site, Edit]) -> Float[np.ndarray, " pairs"]:
        with resumed_at(model, layer, stream), edit_sites(decoder_of(model), edits):
            return margins(columns, into.ids, pairs.mask)

    def at_the_end(layer: int) -> Float[np.ndarray, " pairs"]:
        stream = exchanged(layer, pairs.last)
        with resumed_at(model, layer, stream.take_along_dim(places[..., None], dim=1)):
            return margins(ends, ends.ids, ends.mask)

    def with_mlp_of_source(block: int) -> Float[Tensor, "pairs seq d_model"]:
        return into.streams[block + 1] + source.added[MLP][block] - into.added[MLP][block]

    def attention_of_source(block: int) -> dict[Site, Edit]:
        return {Site("attn_out", block): lambda own: source.added[ATTENTION][block]}

    return {
        LAST: np.stack([at_the_end(layer) for layer in layers]),
        DIFFERING: np.stack([from_layer(layer, exchanged(layer, pairs.differing), {}) for layer in layers]),
        ATTENTION: np.stack([from_layer(at, into.streams[at], attention_of_source(at)) for at in blocks]),
        MLP: np.stack([from_layer(at + 1, with_mlp_of_source(at), {}) for at in blocks]),
    }
