"""Passes that compute only what a change can reach: some columns after cached ones, the blocks from one on.

What is patched at the last token leaves the keys and values of all tokens before it as they were, what two inputs have
in common at their start is the same in both, and blocks below a change repeat what they did. The numbers are those of
whole passes up to rounding.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from src.utils.circuits.contrast import ContrastPairs, Margin
from src.utils.safety_judge.scoring import last_logits, last_real_positions
from src.utils.sites import AnyModel, blocks_of, count_layers, decoder_of, edit_sites, resid_site


class ReadOnlyLayer(DynamicLayer):
    """Keys and values that a pass attends to and leaves as they are."""

    def __init__(self, keys: Float[Tensor, "batch heads seq d_head"], values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = self.kept = keys, values
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.kept
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of a right-padded batch, a `MarginOf` of their ids and mask alone.

    `positions` says for each row which columns they are, `seen` which of the cached ones they attend to. Without a
    cache they are all there are.
    """

    margin: Margin
    whole: Int[Tensor, "batch seq"]
    whole_mask: Int[Tensor, "batch seq"]
    positions: Int[Tensor, "batch columns"]
    cached: list[ReadOnlyLayer] | None = None
    seen: Bool[Tensor, "batch cached"] | None = None

    @property
    def ids(self) -> Int[Tensor, "batch columns"]:
        return self.whole.gather(1, self.positions)

    @property
    def mask(self) -> Int[Tensor, "batch columns"]:
        return self.whole_mask.gather(1, self.positions)

    def __call__(
        self, ids: Int[Tensor, "batch columns"], mask: Int[Tensor, "batch columns"]
    ) -> Float[Tensor, " batch"]:
        """Margins with their graph, as if these ids stood in the whole batch."""
        if self.cached is None or self.seen is None:
            return self.margin(ids, mask)
        logits = last_logits(
            self.margin.model,
            ids,
            mask,
            attention_mask=torch.cat([self.seen.to(mask), mask], dim=1),
            position_ids=self.positions,
            past_key_values=Cache(layers=[*self.cached]),
        )
        whole, whole_mask = (
            before.scatter(1, self.positions, own) for before, own in ((self.whole, ids), (self.whole_mask, mask))
        )
        return self.margin.read(logits, whole, whole_mask)


def last_tokens(margin: Margin, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> Columns:
    """Each row's last real token, after all that comes before it; all columns where a cache would not do."""
    last = last_real_positions(mask)
    width = int(last.max())
    if not width or not is_all_attended(margin.model):
        return all_columns(margin, ids, mask)
    seen = torch.arange(width, device=mask.device) < last[:, None]
    cached = keys_and_values(margin.model, ids[:, :width], mask[:, :width])
    return Columns(margin, ids, mask, last[:, None], cached, seen)


def after_common_start(margin: Margin, pairs: ContrastPairs) -> tuple[Columns, ContrastPairs]:
    """What comes after the columns in which no pair differs: the columns, and the pairs of these alone."""
    width = common_start(margin.model, pairs)
    if not width:
        return all_columns(margin, pairs.safe, pairs.mask), pairs
    positions = torch.arange(width, pairs.mask.shape[1], device=pairs.mask.device).expand(len(pairs), -1)
    start = pairs.mask[:, :width]
    columns = Columns(
        margin,
        pairs.safe,
        pairs.mask,
        positions,
        keys_and_values(margin.model, pairs.safe[:, :width], start),
        start > 0,
    )
    return columns, ContrastPairs(pairs.safe[:, width:], pairs.unsafe[:, width:], pairs.mask[:, width:], pairs.pair_ids)


def common_start(model: AnyModel, pairs: ContrastPairs) -> int:
    """How many columns `after_common_start` leaves out."""
    return int(pairs.differing.any(dim=0).int().argmax()) if is_all_attended(model) else 0


def all_columns(margin: Margin, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> Columns:
    return Columns(margin, ids, mask, torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1))


def is_all_attended(model: AnyModel) -> bool:
    """Whether every layer attends to all that came before; windows count columns, which a cache shifts."""
    config: PreTrainedConfig = decoder_of(model).config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    return getattr(config, "sliding_window", None) is None


def numbers_cached(model: AnyModel) -> int:
    """How many numbers the keys and values of one token are."""
    config = decoder_of(model).config
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * d_head


@torch.no_grad()
def keys_and_values(
    model: AnyModel, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
) -> list[ReadOnlyLayer]:
    """Those of every layer, by the model and not its decoder alone: a trainer's autocast is around the former."""
    cache = DynamicCache()
    model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        found.append(ReadOnlyLayer(layer.keys, layer.values))
    return found


@contextmanager
def resumed_at(model: AnyModel, layer: int, stream: Float[Tensor, "batch seq d_model"]) -> Generator[None]:
    """While open, passes begin with this residual stream: into block `layer`, or out of the last one at n_layers.

    The blocks before it hand on what they get, and their sites see nothing of worth.
    """
    decoder = decoder_of(model)
    skipped = list(blocks_of(decoder))[:layer]
    own = [vars(block).get("forward") for block in skipped]
    try:
        for block in skipped:
            block.forward = lambda hidden_states, *args, **kwargs: hidden_states
        with edit_sites(decoder, {resid_site(layer, count_layers(model)): lambda hidden: stream}):
            yield
    finally:
        for block, before in zip(skipped, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before
