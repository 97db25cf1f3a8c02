"""The residual stream layer by layer while a model learns: how long it is at each token, how far it has moved.

Layer l is Hugging Face's `hidden_states[l]`, TransformerLens's `blocks.l.hook_resid_pre`; the last one is the stream
out of the last block, before the final norm. Behind frozen embeddings and frozen blocks nothing may move, not even by
a bit: a free test that what was to be frozen is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from src.utils.capture import TokenBatch, capture_pooled, capture_tokens
from src.utils.sites import AnyModel, blocks_of, count_layers, decoder_of, resid_site


@dataclass(frozen=True)
class LayerChange:
    """How far each layer moved since the baseline.

    `relative` is the length of the difference as a share of the baseline's length; `largest` is, layer by layer, the
    largest difference of a single number, so that 0 means equal to the last bit.
    """

    relative: Float[np.ndarray, "layers seq"]
    largest: Float[np.ndarray, " layers"]

    def faults(self, n_frozen: int) -> list[int]:
        """Layers that must not have moved and did, or are no numbers."""
        return [layer for layer in range(n_frozen) if self.largest[layer] != 0]


def residual_stream(model: AnyModel, ids: Sequence[int]) -> Float32[np.ndarray, "layers seq d_model"]:
    """All n_layers + 1 layers of one input without padding."""
    n_layers = count_layers(model)
    sites = [resid_site(layer, n_layers) for layer in range(n_layers + 1)]
    found = capture_tokens(model, whole_batch([ids], pad_id=0), sites)
    return torch.stack([found[site].float() for site in sites]).numpy()


def last_token_stream(
    model: AnyModel, rows: Sequence[Sequence[int]], pad_id: int
) -> Float32[np.ndarray, "layers rows d_model"]:
    """All layers at each row's last token, where the judge's margin is read."""
    n_layers = count_layers(model)
    sites = [resid_site(layer, n_layers) for layer in range(n_layers + 1)]
    found = capture_pooled(model, whole_batch(rows, pad_id), sites, ("last_prompt_token",))
    return torch.stack([found[site][:, 0] for site in sites]).numpy()


def whole_batch(rows: Sequence[Sequence[int]], pad_id: int) -> TokenBatch:
    """A right-padded batch in which every real token counts."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    ids = torch.full((len(rows), width), pad_id)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    is_real = torch.arange(width)[None, :] < lengths[:, None]
    return TokenBatch(ids, is_real.long(), answer=is_real, prompt=is_real, last_prompt=lengths - 1)


def norms(stream: Float[np.ndarray, "layers seq d_model"]) -> Float[np.ndarray, "layers seq"]:
    return np.linalg.norm(stream.astype(np.float64), axis=-1)


def change_since(
    stream: Float[np.ndarray, "layers seq d_model"], baseline: Float[np.ndarray, "layers seq d_model"]
) -> LayerChange:
    """Compare with the same input's layers before training; a baseline of length zero gives NaN where it moved."""
    moved = stream.astype(np.float64) - baseline.astype(np.float64)
    distance, length = np.linalg.norm(moved, axis=-1), norms(baseline)
    nothing = np.where(distance == 0, 0.0, np.nan)
    relative = np.divide(distance, length, out=nothing, where=length > 0)
    return LayerChange(relative, np.abs(moved).max(axis=(1, 2)))


def count_frozen(model: AnyModel) -> int:
    """How many layers, from the embeddings on, cannot move: 0 if the embeddings learn, else 1 and the frozen blocks.

    Also true of an adapter: a block in which it has no weights is frozen.
    """
    decoder = decoder_of(model)
    if any(parameter.requires_grad for parameter in decoder.get_submodule("embed_tokens").parameters()):
        return 0
    count = 1
    for block in blocks_of(decoder):
        if any(parameter.requires_grad for parameter in block.parameters()):
            break
        count += 1
    return count


def as_tensor(values: Sequence[int], model: AnyModel) -> Tensor:
    """Token ids on the device where the model takes them."""
    return torch.tensor(list(values), device=decoder_of(model).device)
