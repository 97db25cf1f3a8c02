"""Every site against TransformerLens, against modules by hand where it has none, and on a second architecture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.utils.capture import (
    PATTERN_SUMMARY,
    TokenBatch,
    capture,
    capture_pooled,
    capture_tokens,
    excluded_token_ids,
    markup_of,
    teacher_forcing_batch,
)
from src.utils.collection import sites_of
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response
from src.utils.sites import Site, blocks_of, decoder_of, eager_attention, edit_sites, parse_site
from tests.tiny_collection import plan
from tests.tiny_models import (
    FAMILIES,
    N_LAYERS,
    questions,
    random_prompts,
    random_responses,
    save_model,
    tiny_gemma,
    tiny_model,
    tiny_with_norms_after,
    tokenizer,
    with_adapter,
)

KINDS = ("resid", "embed", "resid_mid", "attn_out", "mlp_out", "attn.z", "attn.result")
HEADS, D_HEAD = 4, 8


def batch_of(prompts: Sequence[Prompt], responses: Sequence[Response]) -> TokenBatch:
    return teacher_forcing_batch(prompts, responses, markup_of(tokenizer()), int(tokenizer().pad_token_id))


def counted_positions(prompt: Prompt, response: Response) -> list[int]:
    excluded = excluded_token_ids(tokenizer())
    return [len(prompt.ids) + i for i, token in enumerate(response.ids) if token not in excluded]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_every_site_is_transformer_lenss(family: str, tmp_path: Path) -> None:
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    model, prompts, responses = tiny_model(family), random_prompts(3), random_responses(3)
    found = capture_pooled(model, batch_of(prompts, responses), sites_of(KINDS, N_LAYERS))
    bridge = bridges.TransformerBridge.boot_transformers(
        str(save_model(model, tmp_path)), device="cpu", dtype=torch.float32
    )
    bridge.set_use_attn_result(True)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(torch.tensor([prompt.ids + response.ids]), prepend_bos=False)
        for site, values in found.items():
            theirs = cache[site.name][0, counted_positions(prompt, response)].mean(dim=0).flatten()
            torch.testing.assert_close(values[row, 0], theirs, rtol=1e-4, atol=1e-4, msg=site.name)


@pytest.mark.parametrize(
    "build",
    [tiny_model, tiny_gemma, partial(tiny_with_norms_after, "olmo2"), partial(tiny_with_norms_after, "glm4")],
    ids=["qwen3", "gemma2", "olmo2", "glm4"],
)
def test_the_residual_stream_is_the_sum_of_what_is_added(build) -> None:
    """resid_pre + attn_out = resid_mid, + mlp_out = resid_post = the next block's resid_pre: means are linear."""
    model, prompts, responses = build(), random_prompts(5), random_responses(5)
    kinds = ("resid", "resid_mid", "attn_out", "mlp_out")
    found = capture_pooled(model, batch_of(prompts, responses), [*sites_of(kinds, N_LAYERS), Site("resid_post", 0)])
    for block in range(N_LAYERS):
        middle = found[Site("resid_pre", block)] + found[Site("attn_out", block)]
        torch.testing.assert_close(middle, found[Site("resid_mid", block)], rtol=1e-4, atol=1e-4)
        after = middle + found[Site("mlp_out", block)]
        following = Site("resid_pre", block + 1) if block + 1 < N_LAYERS else Site("resid_post", block)
        torch.testing.assert_close(after, found[following], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[Site("resid_post", 0)], found[Site("resid_pre", 1)])


def test_gemmas_residual_stream_is_hugging_faces() -> None:
    model, (prompt,), (response,) = tiny_gemma(), random_prompts(1), random_responses(1)
    found = capture_pooled(model, batch_of([prompt], [response]), sites_of(("resid",), N_LAYERS))
    with torch.inference_mode():
        states = model(torch.tensor([prompt.ids + response.ids]), output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        theirs = states[layer][0, counted_positions(prompt, response)].mean(dim=0)
        torch.testing.assert_close(found[Site("resid_pre", layer)][0, 0], theirs, rtol=1e-4, atol=1e-4)


def test_poolings_are_means_over_their_own_tokens() -> None:
    model, responses = tiny_model(), random_responses(4)
    prompts = plan(4).prompts
    poolings = ("response_mean", "prompt_mean", "last_prompt_token")
    site = Site("resid_pre", 2)
    found = capture_pooled(model, batch_of(prompts, responses), [site], poolings)[site]
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.inference_mode():
            states = model(torch.tensor([prompt.ids + response.ids]), output_hidden_states=True).hidden_states[2][0]
        question = tokenizer().encode(questions(4)[row].question, add_special_tokens=False)
        before = len(tokenizer().encode("<|im_start|>user\n", add_special_tokens=False))
        asked = range(before, before + len(question))
        assert list(prompt.ids[before : asked.stop]) == question, "the template is before and after"
        for place, theirs in enumerate(
            (states[counted_positions(prompt, response)].mean(0), states[asked].mean(0), states[len(prompt.ids) - 1])
        ):
            torch.testing.assert_close(found[row, place], theirs, rtol=1e-4, atol=1e-5)


def test_tokens_are_the_hidden_states_that_the_means_are_over() -> None:
    model, prompts, responses = tiny_model(), random_prompts(4), random_responses(4)
    batch, site = batch_of(prompts, responses), Site("resid_pre", 1)
    tokens = capture_tokens(model, batch, [site])[site]
    means = capture_pooled(model, batch, [site])[site][:, 0]
    counts = batch.answer.sum(dim=1).tolist()
    assert tokens.shape == (sum(counts), 32)
    for row, part in enumerate(tokens.split(counts)):
        torch.testing.assert_close(part.mean(dim=0), means[row], rtol=1e-5, atol=1e-5)
        prompt, response = prompts[row], responses[row]
        with torch.inference_mode():
            states = model(torch.tensor([prompt.ids + response.ids]), output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(part, states[counted_positions(prompt, response)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_head_outputs_add_up_to_what_attention_adds_but_its_bias(adapted: bool, bias: bool) -> None:
    model = tiny_model()
    projection = blocks_of(decoder_of(model))[1].get_submodule("self_attn.o_proj")
    if bias:
        projection.bias = nn.Parameter(torch.linspace(-1, 1, 32))
    weight = projection.get_parameter("weight").detach().clone()
    model = with_adapter(model) if adapted else model
    prompts, responses = random_prompts(4), random_responses(4)
    result, z, added = Site("attn.result", 1), Site("attn.z", 1), Site("attn_out", 1)
    poolings = ("response_mean", "last_prompt_token")
    found = capture_pooled(model, batch_of(prompts, responses), [result, z, added], poolings)
    heads = found[result].unflatten(2, (HEADS, 32))
    without_bias = found[added] - torch.linspace(-1, 1, 32) if bias else found[added]
    torch.testing.assert_close(heads.sum(dim=2), without_bias, rtol=1e-4, atol=1e-4)
    if not adapted:
        theirs = found[z][..., :D_HEAD] @ weight[:, :D_HEAD].T
        torch.testing.assert_close(heads[:, :, 0], theirs, rtol=1e-4, atol=1e-4)
    alone = capture_pooled(model, batch_of(prompts, responses), [result], poolings)
    assert alone.keys() == {result} and torch.equal(alone[result], found[result])


def test_means_and_tokens_come_of_one_pass() -> None:
    """The same numbers as those of a pass each, also where a site is in both and where tokens lie deeper."""
    model, batch = tiny_model(), batch_of(random_prompts(4), random_responses(4))
    sites, kept = [Site("resid_pre", 1), Site("attn_out", 0)], [Site("resid_pre", 1), Site("resid_post", 2)]
    apart = capture_pooled(model, batch, sites), capture_tokens(model, batch, kept)
    calls: list[int] = []
    decoder_of(model).register_forward_pre_hook(lambda *_: calls.append(1))
    together = capture(model, batch, sites, token_sites=kept)
    assert len(calls) == 1
    for found, expected in zip(together, apart, strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[site], expected[site]) for site in expected)


def summary_of(
    pattern: Float[Tensor, "head query key"], prompt: Prompt, response: Response
) -> Float[Tensor, "head parts"]:
    """`PATTERN_SUMMARY` of a row without padding, query by query."""
    rows = []
    for query in counted_positions(prompt, response):
        here = pattern[:, query]
        parts = [
            here[:, 0],
            here[:, 1 : len(prompt.ids)].sum(1),
            here[:, len(prompt.ids) : query].sum(1),
            here[:, query],
        ]
        rows.append(torch.stack([*parts, -(here * here.clamp_min(1e-30).log()).sum(1)], dim=-1))
    return torch.stack(rows).mean(dim=0)


@torch.inference_mode()
def test_pattern_summaries_are_hugging_faces_attentions() -> None:
    model, prompts, responses = tiny_model(), random_prompts(3), random_responses(3)
    before = model.config._attn_implementation
    site = Site("attn.pattern", 1)
    found = capture_pooled(model, batch_of(prompts, responses), [site])[site]
    assert model.config._attn_implementation == before
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with eager_attention(model):
            pattern = model(torch.tensor([prompt.ids + response.ids]), output_attentions=True).attentions[1][0]
        expected = summary_of(pattern, prompt, response)
        assert expected.shape == (HEADS, len(PATTERN_SUMMARY))
        torch.testing.assert_close(found[row, 0].unflatten(0, (HEADS, -1)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(expected[:, :4].sum(1), torch.ones(HEADS))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_pattern_summaries_are_transformer_lenss(family: str, tmp_path: Path) -> None:
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    model, prompts, responses = tiny_model(family), random_prompts(3), random_responses(3)
    sites = sites_of(("attn.pattern",), N_LAYERS)
    found = capture_pooled(model, batch_of(prompts, responses), sites)
    bridge = bridges.TransformerBridge.boot_transformers(
        str(save_model(model, tmp_path)), device="cpu", dtype=torch.float32
    )
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        _, cache = bridge.run_with_cache(torch.tensor([prompt.ids + response.ids]), prepend_bos=False)
        for site in sites:
            expected = summary_of(cache[site.name][0], prompt, response).flatten()
            torch.testing.assert_close(found[site][row, 0], expected, rtol=1e-4, atol=1e-5, msg=site.name)


def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(ids).logits


@pytest.mark.parametrize("build", [tiny_model, tiny_gemma], ids=["qwen3", "gemma2"])
@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn.z", "embed"])
def test_an_edit_replaces_what_the_model_goes_on_with(build, kind: str) -> None:
    model, ids = build(), torch.tensor([[5, 6, 7, 8]])
    site = Site(kind, None if kind == "embed" else 1)
    plain = logits_of(model, ids)
    with edit_sites(decoder_of(model), {site: lambda hidden: hidden.clone()}):
        assert torch.equal(logits_of(model, ids), plain)
    with edit_sites(decoder_of(model), {site: lambda hidden: 2 * hidden}):
        assert not torch.allclose(logits_of(model, ids), plain, rtol=1e-3)
    with edit_sites(decoder_of(model), {site: lambda hidden: None}):
        assert torch.equal(logits_of(model, ids), plain)
    assert torch.equal(logits_of(model, ids), plain)


def test_names_go_both_ways_and_unknown_ones_are_usage_errors() -> None:
    for site in (*sites_of((*KINDS, "attn.pattern"), 2), Site("resid_post", 0)):
        assert parse_site(site.name) == site
    assert parse_site("blocks.12.attn.hook_z") == Site("attn.z", 12)
    for name in ("blocks.1.hook_resid", "blocks.x.hook_resid_pre", "hook_pos_embed", ""):
        with pytest.raises(UserError) as caught:
            parse_site(name)
        assert caught.value.exit_code == 2


def test_what_heads_add_is_read_and_not_edited() -> None:
    decoder, edits = decoder_of(tiny_model()), {Site("attn.result", 0): torch.zeros_like}
    with pytest.raises(UserError, match=r"0\.attn\.hook_result: .* take attn\.z"), edit_sites(decoder, edits):
        pass
