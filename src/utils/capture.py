"""Activations over answers, in a second, teacher-forced pass over exactly the generated token ids.

One forward pass for all sites, no logits, stopped after the deepest site asked for. Where a site is, is said in
`sites`; how answers come about, in `generation`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.config_sections import PoolingKind
from src.utils.generation import Prompt, Response
from src.utils.sites import AnyModel, Edit, Site, blocks_of, decoder_of, deepest_first, eager_attention, edit_sites

PATTERN_SUMMARY = ("first_token", "rest_of_prompt", "answer_before", "itself", "entropy")
THINKING_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))  # Qwen3 and DeepSeek-R1; Magistral


class StopForward(Exception):
    """Raised by a hook once the deepest site has been seen; never leaves this module."""


@dataclass(frozen=True)
class Markup:
    """Tokens that never count: `ids` wherever they are, and what stands between the two marks of `thinking`."""

    ids: frozenset[int]
    thinking: tuple[int, int] | None = None


@dataclass(frozen=True)
class TokenBatch:
    """Prompts and their answers as one right-padded batch; `answer` and `prompt` mark the tokens that count."""

    ids: Int[Tensor, "batch seq"]
    mask: Int[Tensor, "batch seq"]
    answer: Bool[Tensor, "batch seq"]
    prompt: Bool[Tensor, "batch seq"]
    last_prompt: Int[Tensor, " batch"]  # position of the last prompt token

    def weights(self, poolings: Sequence[PoolingKind]) -> Float[Tensor, "batch pooling seq"]:
        """1 where a token counts for a pooling, else 0."""
        last = torch.zeros_like(self.answer)
        last[torch.arange(len(last)), self.last_prompt] = True
        chosen = {"response_mean": self.answer, "prompt_mean": self.prompt, "last_prompt_token": last}
        return torch.stack([chosen[pooling] for pooling in poolings], dim=1).float()


def capture_pooled(
    model: AnyModel,
    batch: TokenBatch,
    sites: Sequence[Site],
    poolings: Sequence[PoolingKind] = ("response_mean",),
) -> dict[Site, Float[Tensor, "batch pooling width"]]:
    """The means of `capture` alone."""
    return capture(model, batch, sites, poolings)[0]


def capture_tokens(
    model: AnyModel, batch: TokenBatch, sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "answer_tokens width"]]:
    """The tokens of `capture` alone."""
    return capture(model, batch, (), token_sites=sites)[1]


@torch.no_grad()
def capture(
    model: AnyModel,
    batch: TokenBatch,
    sites: Sequence[Site],
    poolings: Sequence[PoolingKind] = ("response_mean",),
    token_sites: Sequence[Site] = (),
) -> tuple[dict[Site, Float[Tensor, "batch pooling width"]], dict[Site, Float[Tensor, "answer_tokens width"]]]:
    """Means at `sites` and single tokens at `token_sites`, in one pass, on the CPU.

    Means are over the tokens of each pooling, accumulated in float32; a row without a token that counts gives NaN. A
    site `attn.pattern` gives `PATTERN_SUMMARY` for each head over answer tokens, (batch, 1, n_heads * 5), whatever the
    poolings. Tokens are the answer's that count, row after row, in the model's dtype.
    """
    decoder = decoder_of(model)
    weights = batch.weights(poolings).to(decoder.device)
    counts = weights.sum(dim=2)[..., None]
    measured = [Site("attn.z", site.block) if site.kind == "attn.result" else site for site in sites]
    means: dict[Site, Tensor] = {}
    tokens: dict[Site, Tensor] = {}

    def recorded(site: Site) -> Edit:
        def record(hidden: Float[Tensor, "batch seq width"]) -> None:
            if site in measured:
                means[site] = weighted_sums(weights.to(hidden.device), hidden) / counts.to(hidden.device)
            if site in token_sites:
                tokens[site] = hidden[batch.answer.to(hidden.device)].cpu()

        return record

    def summarised(site: Site) -> Edit:
        def record(pattern: Float[Tensor, "batch head query key"]) -> None:
            means[site] = summarise_pattern(pattern, batch)

        return record

    edits = {site: recorded(site) for site in (*measured, *token_sites)}
    edits |= {site: summarised(site) for site in measured if site.kind == "attn.pattern"}
    run_decoder(model, decoder, batch, edits)
    found = {site: means[source].cpu() for site, source in zip(sites, measured, strict=True)}
    for site in sites:
        if site.kind == "attn.result":
            found[site] = head_outputs(model, site, found[site])
    return found, tokens


def run_decoder(model: AnyModel, decoder: PreTrainedModel, batch: TokenBatch, edits: Mapping[Site, Edit]) -> None:
    """One pass without the language-model head, no further than the deepest site."""
    deepest, *_ = deepest_first(edits)
    hooked = dict(edits) | {deepest: then_stop(edits[deepest])}
    needs_patterns = any(site.kind == "attn.pattern" for site in edits)
    device = decoder.device
    with (
        eager_attention(model) if needs_patterns else nullcontext(),
        edit_sites(decoder, hooked),
        suppress(StopForward),
    ):
        decoder(input_ids=batch.ids.to(device), attention_mask=batch.mask.to(device), use_cache=False)


def then_stop(edit: Edit) -> Callable[[Tensor], None]:
    def hook(hidden: Tensor) -> None:
        edit(hidden)
        raise StopForward

    return hook


def weighted_sums(
    weights: Float[Tensor, "batch pooling seq"], hidden: Float[Tensor, "batch seq width"]
) -> Float[Tensor, "batch pooling width"]:
    """Sums over tokens in float32. Weights of 0 and 1 are exact in every dtype, so that a GPU need not convert."""
    if hidden.dtype == torch.float32:
        return torch.bmm(weights, hidden)
    if hidden.is_cuda:
        return torch.bmm(weights.to(hidden.dtype), hidden, out_dtype=torch.float32)
    return torch.bmm(weights, hidden.float())


def summarise_pattern(
    pattern: Float[Tensor, "batch head query key"], batch: TokenBatch
) -> Float[Tensor, "batch 1 head*5"]:
    """`PATTERN_SUMMARY` of each head, the mean over answer tokens: where attention goes, and its entropy in nats."""
    pattern = pattern.float()
    device = pattern.device
    first = torch.zeros_like(batch.mask, dtype=torch.bool)
    first[:, 0] = True
    positions = torch.arange(batch.ids.shape[1])
    is_prompt = positions[None, :] <= batch.last_prompt[:, None]
    to_first = torch.einsum("bhqk,bk->bhq", pattern, first.to(device, torch.float32))
    to_prompt = torch.einsum("bhqk,bk->bhq", pattern, (is_prompt & ~first).to(device, torch.float32))
    itself = pattern.diagonal(dim1=2, dim2=3)
    before = pattern.sum(dim=3) - to_first - to_prompt - itself
    entropy = torch.special.entr(pattern).sum(dim=3)
    summary = torch.stack([to_first, to_prompt, before, itself, entropy], dim=-1)
    weights = batch.answer.to(device, torch.float32)
    means = torch.einsum("bhqs,bq->bhs", summary, weights) / weights.sum(dim=1)[:, None, None]
    return means.flatten(1)[:, None]


def head_outputs(
    model: AnyModel, site: Site, z_means: Float[Tensor, "batch pooling heads*d_head"]
) -> Float[Tensor, "batch pooling heads*d_model"]:
    """What each head of a block adds to the residual stream, from means of the block's `attn.z`.

    The output projection is linear, so the mean of a head's output is the projection of the mean of its z; an adapter
    on the projection is included, a bias, which is no head's, is not.
    """
    decoder = decoder_of(model)
    assert site.block is not None
    projection = blocks_of(decoder)[site.block].get_submodule("self_attn.o_proj")
    n_heads = decoder.config.num_attention_heads
    by_head = z_means.unflatten(2, (n_heads, -1))
    alone = torch.einsum("bphd,hg->bpghd", by_head, torch.eye(n_heads, dtype=by_head.dtype)).flatten(3)
    parameter = next(projection.parameters())
    bias = projection(torch.zeros_like(alone[:1, :1, :1]).to(parameter.device, parameter.dtype))
    return (projection(alone.to(parameter.device, parameter.dtype)) - bias).float().cpu().flatten(2)


def teacher_forcing_batch(
    prompts: Sequence[Prompt], responses: Sequence[Response], markup: Markup, pad_id: int
) -> TokenBatch:
    """Prompts and answers joined; markup does not count, nor does what in a prompt is the template's."""
    rows = [prompt.ids + response.ids for prompt, response in zip(prompts, responses, strict=True)]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    counted = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        counted[number, : len(row)] = torch.tensor(counted_tokens(row, prompt, markup), dtype=torch.bool)
    starts = torch.tensor([len(prompt.ids) for prompt in prompts])
    is_prompt = torch.arange(width)[None, :] < starts[:, None]
    return TokenBatch(ids, mask, answer=counted & ~is_prompt, prompt=counted & is_prompt, last_prompt=starts - 1)


def counted_tokens(row: Sequence[int], prompt: Prompt, markup: Markup) -> list[bool]:
    """Which tokens of a prompt and its answer are content.

    Thinking is cut from mark to mark, to the end where it does not end, also where the template has opened it. A mark
    that the question itself holds opens nothing.
    """
    asked, answered = len(prompt.ids), len(row) - len(prompt.ids)
    is_own = [*(prompt.content or [True] * asked), *[True] * answered]
    is_question = [*(prompt.content or [False] * asked), *[False] * answered]
    counted, is_thought = [], False
    for token, own, question in zip(row, is_own, is_question, strict=True):
        if markup.thinking and token in markup.thinking and not question:
            is_thought = token == markup.thinking[0]
            counted.append(False)
        else:
            counted.append(own and not is_thought and token not in markup.ids)
    return counted


def markup_of(tokenizer: PreTrainedTokenizerBase) -> Markup:
    """What is markup to a tokenizer; thinking is known by marks that are one token each."""
    for marks in THINKING_MARKS:
        first, last = (tokenizer.convert_tokens_to_ids(mark) for mark in marks)
        if isinstance(first, int) and isinstance(last, int) and tokenizer.unk_token_id not in (first, last):
            return Markup(excluded_token_ids(tokenizer), (first, last))
    return Markup(excluded_token_ids(tokenizer))


def excluded_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that are markup, not answer: special ones and everything added to the vocabulary, such as `<think>`."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills a batch; it is masked, so that any will do."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
