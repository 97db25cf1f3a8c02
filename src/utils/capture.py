"""Residual-stream activations over answers, in a second, teacher-forced pass over the generated token ids.

One forward pass for all layers, no logits, stopped after the deepest layer asked for. Layer l is TransformerLens's
`blocks.l.hook_resid_pre` and Hugging Face's `hidden_states[l]`; l = number of blocks is the last block's
`hook_resid_post` (unlike Hugging Face's last hidden state it is taken before the final norm).
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.generation import Prompt, Response


class StopForward(Exception):
    """Raised by a hook once the deepest layer has been seen; never leaves this module."""


def site_name(layer: int, n_layers: int) -> str:
    """The TransformerLens name of a layer number."""
    return f"blocks.{layer}.hook_resid_pre" if layer < n_layers else f"blocks.{n_layers - 1}.hook_resid_post"


def decoder_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The stack of blocks under the language-model head, adapters left in place."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base.get_decoder()


def blocks_of(decoder: PreTrainedModel) -> nn.ModuleList:
    blocks = decoder.get_submodule("layers")
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def count_layers(model: PreTrainedModel | PeftModel) -> int:
    return len(blocks_of(decoder_of(model)))


@contextmanager
def residual_hooks(
    decoder: PreTrainedModel, layers: Sequence[int], record: Callable[[int, Tensor], None]
) -> Generator[None]:
    """While open, `record(layer, hidden)` sees the input of each layer asked for, hidden being (batch, seq, d_model).

    The hooks are gone when the block ends, however it ends.
    """
    blocks = [*blocks_of(decoder), decoder.get_submodule("norm")]
    deepest = max(layers)

    def hook_for(layer: int):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            record(layer, args[0] if args else kwargs["hidden_states"])
            if layer == deepest:
                raise StopForward

        return hook

    handles = []
    try:
        for layer in sorted(set(layers)):
            handles.append(blocks[layer].register_forward_pre_hook(hook_for(layer), with_kwargs=True))  # noqa: PERF401
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def capture_means(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    layers: Sequence[int],
    excluded_ids: frozenset[int],
    pad_id: int,
) -> Float[Tensor, "batch layer d_model"]:
    """Mean activation over each answer's tokens, in float32 on the CPU.

    Tokens in `excluded_ids` (special, template and thinking tokens) and padding do not count. An answer without a
    countable token gives NaN.
    """
    ids, mask, counted = teacher_forcing_batch(prompts, responses, excluded_ids, pad_id)
    decoder = decoder_of(model)
    device = decoder.device
    weights = counted.to(device, torch.float32)
    weights = weights / weights.sum(dim=1, keepdim=True)
    means: dict[int, Tensor] = {}

    def record(layer: int, hidden: Float[Tensor, "batch seq d_model"]) -> None:
        means[layer] = torch.bmm(weights.to(hidden.device)[:, None, :], hidden.float()).squeeze(1).cpu()

    with residual_hooks(decoder, layers, record), suppress(StopForward):
        decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return torch.stack([means[layer] for layer in layers], dim=1)


def teacher_forcing_batch(
    prompts: Sequence[Prompt], responses: Sequence[Response], excluded_ids: frozenset[int], pad_id: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Right-padded prompt and answer ids, the attention mask, and the positions that count."""
    rows = [prompt.ids + response.ids for prompt, response in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    counted = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        start = len(prompt.ids)
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        counted[number, start : len(row)] = torch.tensor(
            [token not in excluded_ids for token in row[start:]], dtype=torch.bool
        )
    return ids, mask, counted


def excluded_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that are markup, not answer: special ones and everything added to the vocabulary, such as `<think>`."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)
