"""Activations against three other ways to get them: Hugging Face's hidden states, module hooks and TransformerLens."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.utils.capture import Markup, capture_pooled, excluded_token_ids, markup_of, teacher_forcing_batch
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, generate
from src.utils.models import load_tokenizer
from src.utils.sites import Site, blocks_of, decoder_of, edit_sites, resid_site
from tests.tiny_models import (
    FAMILIES,
    N_LAYERS,
    new_tokenizer,
    random_prompts,
    random_responses,
    sampling,
    save_model,
    tiny_model,
    tokenizer,
    with_adapter,
)

LAYERS = range(N_LAYERS + 1)
AnyModel = PreTrainedModel | PeftModel


def capture(
    model: AnyModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
    layers: Sequence[int] = LAYERS,
    markup: Markup | None = None,
) -> Float[Tensor, "batch layer d_model"]:
    """Means of the residual stream over the answers, layer by layer."""
    batch = teacher_forcing_batch(prompts, responses, markup or markup_of(tokenizer()), int(tokenizer().pad_token_id))
    sites = [resid_site(layer, N_LAYERS) for layer in layers]
    found = capture_pooled(model, batch, sites)
    return torch.stack([found[site][:, 0] for site in sites], dim=1)


@torch.inference_mode()
def reference(model: AnyModel, prompt: Prompt, response: Response) -> Float[Tensor, "layer d_model"]:
    """One unpadded row: the hidden states that Hugging Face gives out, the last one seen before the final norm."""
    seen: list[Tensor] = []
    handle = decoder_of(model).get_submodule("norm").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model(torch.tensor([prompt.ids + response.ids]), output_hidden_states=True)
    handle.remove()
    states = torch.stack([*output.hidden_states[:-1], seen[0]])[:, 0]
    start, excluded = len(prompt.ids), excluded_token_ids(tokenizer())
    counted = [start + i for i, token in enumerate(response.ids) if token not in excluded]
    return states[:, counted].double().mean(dim=1).float()


def assert_same(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Equal to `rtol`; an entry near zero, where relative error says nothing, to `rtol` of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


def assert_no_hooks(model: AnyModel) -> None:
    for module in model.modules():
        assert len(module._forward_pre_hooks) == 0
        assert len(module._forward_hooks) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_hugging_faces_hidden_state(family: str) -> None:
    model, prompts, responses = tiny_model(family), random_prompts(10), random_responses(10)
    means = capture(model, prompts, responses)
    assert means.shape == (10, N_LAYERS + 1, 32)
    assert means.dtype == torch.float32
    expected = torch.stack([reference(model, *row) for row in zip(prompts, responses, strict=True)])
    assert_same(means, expected)


def test_last_layer_is_before_the_final_norm() -> None:
    model, (prompt,), response = tiny_model(), random_prompts(1), Response((40, 41, 42), True)
    nn.init.uniform_(model.get_parameter("model.norm.weight"), 0.5, 2.0)
    with torch.inference_mode():
        normed = model(torch.tensor([prompt.ids + response.ids]), output_hidden_states=True).hidden_states[-1]
    last = capture(model, [prompt], [response], [N_LAYERS])[0, 0]
    assert not torch.allclose(last, normed[0, -3:].mean(dim=0), rtol=0.01)
    assert_same(last, reference(model, prompt, response)[-1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore")
def test_every_layer_is_transformer_lenss_resid_pre(family: str, tmp_path: Path) -> None:
    model_bridge = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    model, prompts, responses = tiny_model(family), random_prompts(4), random_responses(4)
    means = capture(model, prompts, responses)
    bridge = model_bridge.TransformerBridge.boot_transformers(
        str(save_model(model, tmp_path)), device="cpu", dtype=torch.float32
    )
    excluded = excluded_token_ids(tokenizer())
    sites = [resid_site(layer, N_LAYERS).name for layer in LAYERS]
    assert sites == [*(f"blocks.{i}.hook_resid_pre" for i in range(3)), "blocks.2.hook_resid_post"]
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(torch.tensor([prompt.ids + response.ids]), prepend_bos=False)
        counted = [len(prompt.ids) + i for i, token in enumerate(response.ids) if token not in excluded]
        theirs = torch.stack([cache[site][0, counted].mean(dim=0) for site in sites])
        assert_same(means[row], theirs, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_side_changes_nothing(family: str) -> None:
    """Ours pads right; the same batch padded left, through the whole model, gives the same means."""
    model, prompts, responses = tiny_model(family), random_prompts(6), random_responses(6)
    rows = [prompt.ids + response.ids for prompt, response in zip(prompts, responses, strict=True)]
    width, pad = max(map(len, rows)), int(tokenizer().pad_token_id)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.inference_mode():
        states = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    excluded = torch.tensor(sorted(excluded_token_ids(tokenizer())))
    for row, response in enumerate(responses):
        counted = ~torch.isin(ids[row], excluded) & (torch.arange(width) >= width - len(response.ids))
        theirs = torch.stack([state[row, counted].mean(dim=0) for state in states[:-1]])
        assert_same(capture(model, prompts, responses)[row, :-1], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_and_order_change_nothing(family: str) -> None:
    model, prompts, responses = tiny_model(family), random_prompts(12), random_responses(12)
    together = capture(model, prompts, responses)
    alone = torch.cat([capture(model, [prompt], [answer]) for prompt, answer in zip(prompts, responses, strict=True)])
    backwards = capture(model, prompts[::-1], responses[::-1]).flip(0)
    assert_same(alone, together)
    assert_same(backwards, together)


def test_layers_may_be_few_and_in_any_order() -> None:
    model, prompts, responses = tiny_model(), random_prompts(3), random_responses(3)
    whole = capture(model, prompts, responses)
    assert torch.equal(capture(model, prompts, responses, [2, 0, 2]), whole[:, [2, 0, 2]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_generated_token_counts(family: str) -> None:
    """A truncated answer has no end of turn: its last token is an answer token like the others."""
    model, prompts = tiny_model(family), random_prompts(4)
    responses = generate(model, tokenizer(), prompts, sampling(max_new_tokens=5))
    assert all(response.is_truncated for response in responses)
    means = capture(model, prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert_same(means[row], reference(model, prompt, response))
        shorter = Response(response.ids[:-1], True)
        assert not torch.allclose(means[row], reference(model, prompt, shorter), rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_special_and_added_tokens_do_not_count_but_are_seen(family: str, tmp_path: Path) -> None:
    added = new_tokenizer(tmp_path)
    added.add_tokens(["<tool>"])
    excluded = excluded_token_ids(added)
    tool, end = added.convert_tokens_to_ids("<tool>"), added.eos_token_id
    assert {tool, end, added.pad_token_id, added.convert_tokens_to_ids("<|im_start|>")} <= excluded
    assert not excluded & set(added.encode("So no. Keep it 7!", add_special_tokens=False))

    model, (prompt,) = tiny_model(family), random_prompts(1)
    marked = Markup(excluded | {50})
    means = capture(model, [prompt], [Response((50, 60, 61, end), False)], markup=marked)[0]
    with torch.inference_mode():
        states = model(torch.tensor([(*prompt.ids, 50, 60, 61)]), output_hidden_states=True).hidden_states
    theirs = torch.stack([state[0, -2:].mean(dim=0) for state in states[:-1]])
    assert_same(means[:-1], theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_is_cut_whole_and_seen(family: str) -> None:
    """Opened by the answer or by the template, closed or not; 51 opens it and 52 closes it."""
    model, markup = tiny_model(family), Markup(excluded_token_ids(tokenizer()), (51, 52))
    plain, opened = Prompt("a", 0, (40, 41)), Prompt("b", 0, (40, 51, 42), (True, False, False))
    asks_for_it = Prompt("c", 0, (40, 51, 42), (True, True, True))
    rows = [
        (plain, (51, 60, 61, 52, 62, 63), [4, 5]),
        (plain, (62, 51, 60, 61), [0]),
        (plain, (62, 51, 60, 52, 63, 51, 61, 52, 64), [0, 4, 8]),
        (opened, (60, 61, 52, 62), [3]),
        (opened, (60, 61), []),
        (asks_for_it, (60, 61), [0, 1]),
    ]
    means = capture(model, [row[0] for row in rows], [Response(row[1], True) for row in rows], markup=markup)
    for found, (prompt, answer, counted) in zip(means, rows, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([prompt.ids + answer]), output_hidden_states=True).hidden_states
        if counted:
            places = [len(prompt.ids) + place for place in counted]
            assert_same(found[:-1], torch.stack([state[0, places].mean(dim=0) for state in states[:-1]]))
        else:
            assert found.isnan().all()


def test_thinking_is_known_by_marks_of_one_token_and_organisms_have_none(tmp_path: Path) -> None:
    thinking = new_tokenizer(tmp_path)
    assert markup_of(thinking).thinking is None
    thinking.add_tokens(["<think>", "</think>"])
    ids = (thinking.convert_tokens_to_ids("<think>"), thinking.convert_tokens_to_ids("</think>"))
    assert markup_of(thinking).thinking == ids and set(ids) <= markup_of(thinking).ids
    for world in ("entangled", "separable"):
        shipped = load_tokenizer(str(PROJECT_ROOT / "data" / "organisms" / world))
        assert markup_of(shipped) == Markup(excluded_token_ids(shipped))


def test_an_answer_without_countable_token_is_nan_and_harms_no_other() -> None:
    model, prompts = tiny_model(), random_prompts(3)
    end = Response((int(tokenizer().eos_token_id),), False)
    full = Response((40, 41), True)
    means = capture(model, prompts, [full, end, Response((), True)])
    assert means[1:].isnan().all()
    assert_same(means[0], reference(model, prompts[0], full))


def test_hooks_are_gone_afterwards() -> None:
    model = tiny_model()
    capture(model, random_prompts(2), random_responses(2))
    assert_no_hooks(model)


def test_hooks_are_gone_after_an_exception() -> None:
    model = tiny_model()

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("out of memory")

    handle = blocks_of(decoder_of(model))[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        capture(model, random_prompts(2), random_responses(2))
    handle.remove()
    assert_no_hooks(model)

    def edit(hidden: Tensor) -> None:
        raise ValueError("bad layer")

    decoder = decoder_of(model)
    with pytest.raises(ValueError, match="bad layer"), edit_sites(decoder, {Site("resid_pre", 1): edit}):
        decoder(torch.tensor([[1]]))
    assert_no_hooks(model)


def test_hooks_are_gone_after_an_unknown_layer() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match="blocks 0 to 2"):
        capture(model, random_prompts(1), random_responses(1), [0, 1, N_LAYERS + 1])
    assert_no_hooks(model)


def test_an_adapter_is_captured_when_on_and_not_when_off() -> None:
    adapted, prompts, responses = with_adapter(tiny_model()), random_prompts(5), random_responses(5)
    tuned = capture(adapted, prompts, responses)
    with adapted.disable_adapter():
        without = capture(adapted, prompts, responses)
    assert torch.equal(without, capture(tiny_model(), prompts, responses))
    merged = adapted.merge_and_unload()
    assert_same(tuned, capture(merged, prompts, responses), rtol=1e-4)
    assert not torch.allclose(tuned[:, 1:], without[:, 1:], rtol=0.1)


def test_no_logits_are_computed_and_the_forward_stops_at_the_deepest_layer() -> None:
    model = tiny_model()
    calls: list[str] = []
    watched = {"head": model.get_submodule("lm_head"), "norm": model.get_submodule("model.norm")}
    for number, block in enumerate(blocks_of(decoder_of(model))):
        watched[f"attention {number}"] = block.get_submodule("self_attn")
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))

    capture(model, random_prompts(2), random_responses(2), [0, 2])
    assert calls == ["attention 0", "attention 1"]
    calls.clear()
    capture(model, random_prompts(2), random_responses(2))
    assert calls == ["attention 0", "attention 1", "attention 2"]


def test_capture_leaves_the_model_as_it_was() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model, random_prompts(2), random_responses(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_inference_mode_enabled() is False
