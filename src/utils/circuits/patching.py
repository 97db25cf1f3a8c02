"""Layer patching: how much of the margin between the two of a pair one layer's activations carry, in both directions.

Denoising puts the unsafe run's activation into the safe run and counts what of the margin's gap appears, noising puts
the safe run's into the unsafe run and counts what is lost (Heimersheim & Nanda, arXiv 2404.15255). The first finds
what suffices, the second what is needed; they differ where there are backups or where several parts work together.
Every value is a forward pass, nothing is linearised.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from src.utils.circuits.contrast import ContrastPairs, MarginOf, has_gap, margins
from src.utils.decomposition.prompt_resampling import prompt_weights
from src.utils.sites import AnyModel, Edit, Site, count_layers, decoder_of, edit_sites, resid_site

# The stream is patched at some tokens only: at all of them it decides the margin alone, and every layer recovers 100%.
LAST, DIFFERING, ATTENTION, MLP = "last_token", "differing_tokens", "attention", "mlp"
KINDS = (LAST, DIFFERING, ATTENTION, MLP)
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


def patch_layers(model: AnyModel, margin_of: MarginOf, pairs: ContrastPairs) -> LayerPatching:
    """Patch every layer in every kind, all pairs at once: 4 n_layers + 2 sites, two forward passes each."""
    pairs = pairs.to(decoder_of(model).device)
    n_layers = count_layers(model)
    stream = [resid_site(layer, n_layers) for layer in range(n_layers + 1)]
    everywhere = pairs.mask.bool()
    plan = {
        LAST: (stream, pairs.last),
        DIFFERING: (stream, pairs.differing),
        ATTENTION: ([Site("attn_out", block) for block in range(n_layers)], everywhere),
        MLP: ([Site("mlp_out", block) for block in range(n_layers)], everywhere),
    }
    sites = dict.fromkeys(site for kind_sites, _ in plan.values() for site in kind_sites)
    safe, of_safe = with_activations(model, margin_of, pairs.safe, pairs.mask, sites)
    unsafe, of_unsafe = with_activations(model, margin_of, pairs.unsafe, pairs.mask, sites)

    def patched(
        ids: Tensor, source: Mapping[Site, Tensor], kind_sites: list[Site], where: Tensor
    ) -> Float[np.ndarray, "layers pairs"]:
        found = []
        for site in kind_sites:
            with edit_sites(decoder_of(model), {site: replace_at(source[site], where)}):
                found.append(margins(margin_of, ids, pairs.mask))
        return np.stack(found)

    denoised = {kind: patched(pairs.safe, of_unsafe, *planned) for kind, planned in plan.items()}
    noised = {kind: patched(pairs.unsafe, of_safe, *planned) for kind, planned in plan.items()}
    return LayerPatching(safe, unsafe, denoised, noised)


def replace_at(source: Float[Tensor, "pairs seq width"], where: Bool[Tensor, "pairs seq"]) -> Edit:
    """An edit that puts other activations in the place of those at some tokens."""
    return lambda hidden: torch.where(where[..., None], source, hidden)


@torch.no_grad()
def with_activations(
    model: AnyModel, margin_of: MarginOf, ids: Tensor, mask: Tensor, sites: Mapping[Site, None]
) -> tuple[Float[np.ndarray, " pairs"], dict[Site, Float[Tensor, "pairs seq width"]]]:
    """Margins and the activations of some sites in one pass."""
    kept: dict[Site, Tensor] = {}

    def keep(site: Site) -> Edit:
        def edit(hidden: Tensor) -> None:
            kept[site] = hidden.detach().clone()

        return edit

    with edit_sites(decoder_of(model), {site: keep(site) for site in sites}):
        return margins(margin_of, ids, mask), kept
