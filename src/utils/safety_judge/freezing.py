"""What of a judge learns: the upper blocks and the final norm. Embeddings, first blocks and the head do not.

The head is frozen with the embeddings in every model. Where they are tied (Qwen3-4B, the organism) it is the same
matrix; where they are not (Llama), a free head could move the two answer words instead of what the blocks write. The
direction of the margin is so the same before and after training, up to the gains of the final norm.
"""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from src.utils.errors import UserError


@dataclass(frozen=True)
class Freezing:
    """Counts of what is frozen; `tied` says that head and embeddings are one matrix, counted once."""

    blocks: int
    n_blocks: int
    tied: bool
    frozen_parameters: int
    trainable_parameters: int


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order."""
    blocks = model.base_model.layers
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def freeze(model: PreTrainedModel, blocks: int) -> Freezing:
    """Freeze embeddings, head and the first `blocks` blocks; everything else is made to learn.

    At least one block must be left: else `UserError` with exit code 2.
    """
    found = blocks_of(model)
    if not 0 <= blocks < len(found):
        raise UserError(f"freeze_layers {blocks}: the model has {len(found)} blocks; choose 0 to {len(found) - 1}", 2)
    model.requires_grad_(True)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    for module in (embeddings, head, *list(found)[:blocks]):
        module.requires_grad_(False)
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return Freezing(blocks, len(found), embeddings.weight is head.weight, sizes[False], sizes[True])


def frozen_blocks(model: PreTrainedModel) -> int:
    """How many of the first blocks are frozen whole; with frozen embeddings, their outputs cannot change."""
    count = 0
    for block in blocks_of(model):
        if any(parameter.requires_grad for parameter in block.parameters()):
            break
        count += 1
    return count
