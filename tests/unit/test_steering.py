"""Steering one call of `generate`: what each mode and position changes, to the bit, and that nothing stays behind.

What arrives at a site is read by plain PyTorch hooks, not by the code that is tested.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, generate
from src.utils.sites import AnyModel, Site, blocks_of, decoder_of, resid_site
from src.utils.steering import UNSTEERED, Dose, Mode, Positions, RowEdit, steered
from src.utils.steering_vectors import SteeringVector
from tests.tiny_models import FAMILIES, N_LAYERS, random_prompts, sampling, tiny_model, tokenizer, with_adapter

WIDTH, STEPS = 32, 6
MODES: tuple[Mode, ...] = ("add", "ablate", "cap")
POSITIONS: tuple[Positions, ...] = ("all", "response", "last")


def vector(seed: int = 0, layer: int = 1, norm: float = 4.0, base_projection: float = 0.2) -> SteeringVector:
    drawn = np.random.default_rng(seed).normal(size=WIDTH)
    direction = (norm * drawn / np.linalg.norm(drawn)).astype(np.float32)
    site = resid_site(layer, N_LAYERS)
    return SteeringVector(f"v{seed}", "dimension", site, direction, "em_minus_base", 3, base_projection)


def answers(model: AnyModel, prompts: Sequence[Prompt], steps: int = STEPS) -> list[Response]:
    return generate(model, tokenizer(), prompts, sampling(max_new_tokens=steps))


@contextmanager
def watched(module: nn.Module, is_input: bool = True) -> Generator[list[Tensor]]:
    """What a module is given, or gives, pass after pass; hooks that were there before have had their way with it."""
    seen: list[Tensor] = []

    def on_input(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def on_output(_: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).clone())

    handle = module.register_forward_pre_hook(on_input, with_kwargs=True) if is_input else None
    handle = handle or module.register_forward_hook(on_output)
    try:
        yield seen
    finally:
        handle.remove()


def block(model: AnyModel, number: int) -> nn.Module:
    return blocks_of(decoder_of(model))[number]


def head(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("lm_head")


def before_and_after(
    doses: Sequence[Dose], mode: Mode, positions: Positions, model: AnyModel | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The input of block 1 before and after its edit, pass after pass, in one steered call."""
    model = model or tiny_model()
    with watched(block(model, 1)) as before, steered(model, doses, mode, positions), watched(block(model, 1)) as after:
        answers(model, random_prompts(len(doses)))
    assert len(before) == len(after) == STEPS
    return before, after


def assert_no_hooks(model: AnyModel) -> None:
    for module in model.modules():
        assert len(module._forward_pre_hooks) == len(module._forward_hooks) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("positions", POSITIONS)
def test_rows_that_are_off_keep_every_bit(family: str, mode: Mode, positions: Positions) -> None:
    """Logits of coefficient 0 and of no vector are those of an unsteered run, alone and beside steered rows."""
    model, prompts, v = tiny_model(family), random_prompts(6), vector(base_projection=-9.0)
    with watched(head(model)) as plain:
        unsteered = answers(model, prompts)
    with watched(head(model)) as zero, steered(model, [Dose(v, 0.0)] * 6, mode, positions):
        assert answers(model, prompts) == unsteered
    assert [bits(step) for step in zero] == [bits(step) for step in plain]

    mixed_doses = [Dose(v, 0.0), Dose(v, 9.0), UNSTEERED, Dose(v, -9.0), Dose(v, -0.0), Dose(None, 3.0)]
    with watched(head(model)) as mixed, steered(model, mixed_doses, mode, positions):
        said = answers(model, prompts)
    off = [0, 2, 4, 5]
    assert [said[row] for row in off] == [unsteered[row] for row in off]
    assert [bits(step[off]) for step in mixed] == [bits(step[off]) for step in plain]
    assert not torch.equal(mixed[0][[1, 3]], plain[0][[1, 3]])


def bits(values: Tensor) -> bytes:
    return values.contiguous().numpy().tobytes()


def test_not_even_the_sign_of_a_zero_changes() -> None:
    """-0.0 + 0.0 is 0.0: adding nothing is not the same as doing nothing."""
    edit = RowEdit([UNSTEERED, Dose(vector(), 1.0)], "add", "all")
    hidden = torch.full((2, 3, WIDTH), -0.0)
    after = edit(hidden)
    assert after is not None and torch.signbit(after[0]).all()
    assert torch.equal(after[1], torch.from_numpy(vector().direction).expand(3, -1))


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions_are_those_of_their_definition(positions: Positions) -> None:
    """Which places of each pass are moved, and by exactly the coefficient times the vector."""
    doses = [Dose(vector(seed), c) for seed, c in ((0, 1.0), (1, -2.5), (2, 0.5), (3, 3.0))]
    before, after = before_and_after(doses, "add", positions)
    wanted = torch.stack([dose.coefficient * torch.from_numpy(dose.vector.direction) for dose in doses if dose.vector])
    for step, (old, new) in enumerate(zip(before, after, strict=True)):
        moved = new - old
        here = torch.zeros(old.shape[1], dtype=torch.bool)
        here[-1] = positions != "last" or step == 0
        if positions == "all":
            here[:] = True
        torch.testing.assert_close(
            moved[:, here], wanted[:, None].expand(-1, int(here.sum()), -1), rtol=1e-5, atol=1e-5
        )
        assert bits(new[:, ~here]) == bits(old[:, ~here])
    assert before[0].shape[1] > 1 and all(old.shape[1] == 1 for old in before[1:])


def test_the_last_prompt_token_is_found_in_prompts_of_one_token() -> None:
    """A prefill of width 1 looks like a decoding step and is none."""
    model, doses = tiny_model(), [Dose(vector(), 5.0)] * 2
    prompts = [Prompt("a", 0, (40,)), Prompt("b", 0, (50,))]
    with watched(block(model, 1)) as before, steered(model, doses, "add", "last"), watched(block(model, 1)) as after:
        answers(model, prompts)
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == [True] + [False] * (STEPS - 1)


@pytest.mark.parametrize("positions", POSITIONS[:2])
def test_ablation_leaves_no_projection_at_its_site(positions: Positions) -> None:
    doses = [Dose(vector(seed), 1.0) for seed in range(5)]
    before, after = before_and_after(doses, "ablate", positions)
    units = torch.stack([torch.from_numpy(dose.vector.unit) for dose in doses if dose.vector])
    steered_places = slice(None) if positions == "all" else slice(-1, None)
    for whole_old, whole_new in zip(before, after, strict=True):
        old, new = whole_old[:, steered_places], whole_new[:, steered_places]
        left = torch.einsum("bsd,bd->bs", new, units)
        assert left.abs().max() < 1e-5 * old.norm(dim=-1).max()
        assert torch.einsum("bsd,bd->bs", old, units).abs().max() > 0.1
        across = old - torch.einsum("bsd,bd->bs", old, units)[..., None] * units[:, None]
        torch.testing.assert_close(new, across, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_everywhere_leaves_no_projection_anywhere_in_the_stream(family: str) -> None:
    """At the input of every block and of the final norm, and in what each block adds."""
    model, doses = tiny_model(family), [Dose(vector(seed), 1.0) for seed in range(4)] + [UNSTEERED]
    units = torch.stack([torch.from_numpy(dose.vector.unit) for dose in doses if dose.vector])
    places = [*((block(model, i), True) for i in range(N_LAYERS)), (model.get_submodule("model.norm"), True)]
    places += [(block(model, i).get_submodule(name), False) for i in range(N_LAYERS) for name in ("self_attn", "mlp")]
    prompts = random_prompts(5)
    unsteered = answers(model, prompts)
    with steered(model, doses, "ablate", "all", everywhere=True):
        seen = []
        for module, is_input in places:
            watch = watched(module, is_input)
            seen.append((watch, watch.__enter__()))
        said = answers(model, prompts)
        for watch, _ in seen:
            watch.__exit__(None, None, None)
    for _, passes in seen:
        assert len(passes) == STEPS
        for hidden in passes:
            left = torch.einsum("bsd,bd->bs", hidden[:4], units)
            assert left.abs().max() < 1e-4 * hidden.norm(dim=-1).max()
    assert said[4] == unsteered[4] and said[:4] != unsteered[:4]
    assert_no_hooks(model)


def test_a_cap_bounds_the_projection_and_leaves_what_is_below_it() -> None:
    doses = [Dose(vector(seed, base_projection=ceiling), 1.0) for seed, ceiling in enumerate((0.3, -0.2, 0.0, 50.0))]
    before, after = before_and_after(doses, "cap", "all")
    units = torch.stack([torch.from_numpy(dose.vector.unit) for dose in doses if dose.vector])
    ceilings = torch.tensor([dose.vector.base_projection for dose in doses if dose.vector])[:, None]
    lowered = 0
    for old, new in zip(before, after, strict=True):
        projected, found = (torch.einsum("bsd,bd->bs", x, units) for x in (old, new))
        assert (found <= ceilings + 1e-4).all()
        torch.testing.assert_close(found, torch.minimum(projected, ceilings), rtol=1e-4, atol=1e-4)
        above = projected > ceilings + 1e-4
        assert torch.equal(new[~(projected > ceilings - 1e-4)], old[~(projected > ceilings - 1e-4)])
        lowered += int(above.sum())
        assert torch.equal(new[3], old[3])
    assert lowered > 20


def test_rows_of_one_batch_answer_as_they_would_alone() -> None:
    """Different vectors, sites, coefficients and prompt lengths in one batch, against one row at a time."""
    model, prompts = tiny_model(n_ends=60), random_prompts(8)
    doses = [Dose(vector(0), 2.0), UNSTEERED, Dose(vector(1), -3.0), Dose(vector(0), -2.0)]
    doses += [Dose(vector(2, layer=2), 2.0), Dose(vector(3, layer=N_LAYERS), 3.0)]
    doses += [Dose(vector(0), 0.0), Dose(vector(1, layer=0), 1.0)]
    for positions in POSITIONS:
        with steered(model, doses, "add", positions):
            together = answers(model, prompts, 12)
        alone = []
        for prompt, dose in zip(prompts, doses, strict=True):
            with steered(model, [dose], "add", positions):
                alone += answers(model, [prompt], 12)
        assert together == alone
        plain = answers(model, prompts, 12)
        same = {row for row in range(8) if together[row] == plain[row]}
        assert {1, 6} <= same and len(same) <= 4, "answers differ, so that equality says something"


def test_a_large_push_along_an_unembedding_says_that_token() -> None:
    """What is added arrives at the logits: at the last site, a multiple of a token's own row decides for it."""
    model, prompts = tiny_model("llama"), random_prompts(4)
    row = model.get_parameter("lm_head.weight")[77].detach().numpy()
    nn.init.ones_(model.get_parameter("model.norm.weight"))
    pushed = replace(vector(layer=N_LAYERS), direction=(row / np.linalg.norm(row)).astype(np.float32))
    with steered(model, [Dose(pushed, 1e4)] * 4, "add", "all"):
        said = generate(model, tokenizer(), prompts, sampling(temperature=0, max_new_tokens=3))
    assert {token for response in said for token in response.ids} == {77}


def test_an_adapter_is_steered_through_its_own_weights() -> None:
    adapted, doses, prompts = with_adapter(tiny_model()), [Dose(vector(), 3.0)] * 4, random_prompts(4)
    before, after = before_and_after(doses, "add", "all", adapted)
    shift = 3.0 * torch.from_numpy(vector().direction)
    torch.testing.assert_close(after[0] - before[0], shift.expand_as(before[0]), rtol=1e-5, atol=1e-5)
    with steered(adapted, doses):
        tuned = answers(adapted, prompts)
    merged = adapted.merge_and_unload()
    with steered(merged, doses):
        assert answers(merged, prompts) == tuned


def test_half_precision_stays_half_and_is_added_to_in_full() -> None:
    edit = RowEdit([Dose(vector(), 1.0), UNSTEERED], "add", "all")
    hidden = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    after = edit(hidden)
    assert after is not None and after.dtype == torch.bfloat16
    assert torch.equal(after[0], (hidden[0].float() + torch.from_numpy(vector().direction)).bfloat16())
    assert torch.equal(after[1], hidden[1])


def raise_error(*_: object) -> None:
    raise RuntimeError("stopped in the middle")


@pytest.mark.parametrize("end", ["normal", "in the block", "in the model"])
def test_hooks_are_gone_however_it_ends(end: str) -> None:
    model, prompts = tiny_model(), random_prompts(3)
    plain = answers(model, prompts)
    doses = [Dose(vector(layer=layer), 5.0) for layer in (0, 1, N_LAYERS)]

    def run(inside: Callable[[], object]) -> None:
        with steered(model, doses):
            assert sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()) == 3
            inside()

    if end == "normal":
        run(lambda: answers(model, prompts))
    elif end == "in the block":
        with pytest.raises(RuntimeError, match="stopped in the middle"):
            run(raise_error)
    else:
        handle = block(model, 2).register_forward_pre_hook(raise_error)
        hooked = {id(module): len(module._forward_pre_hooks) for module in model.modules()}
        with pytest.raises(RuntimeError, match="stopped in the middle"), steered(model, doses):
            answers(model, prompts)
        assert {id(module): len(module._forward_pre_hooks) for module in model.modules()} == hooked
        handle.remove()
    assert_no_hooks(model)
    assert answers(model, prompts) == plain


def test_a_site_that_the_model_lacks_leaves_no_hook() -> None:
    model = tiny_model()
    lost = replace(vector(), site=Site("resid_pre", N_LAYERS + 4))
    with (
        pytest.raises(UserError, match="the model has blocks 0 to 2"),
        steered(model, [Dose(vector(), 1.0), Dose(lost, 1.0)]),
    ):
        pytest.fail("a site that is not there was hooked")
    assert_no_hooks(model)


def test_doses_must_be_as_many_as_rows() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match="3 rows are run and 2 have a dose"), steered(model, [Dose(vector(), 1.0)] * 2):
        answers(model, random_prompts(3))
    assert_no_hooks(model)


@pytest.mark.parametrize("mode", ["add", "cap"])
def test_only_ablation_works_everywhere(mode: Mode) -> None:
    with (
        pytest.raises(ValueError, match="only ablation"),
        steered(tiny_model(), [Dose(vector(), 1.0)], mode, "all", True),
    ):
        pytest.fail("a vector was added everywhere")


def test_nothing_to_do_installs_nothing() -> None:
    model = tiny_model()
    with steered(model, [UNSTEERED, Dose(vector(), 0.0)]):
        assert_no_hooks(model)


def test_an_edit_gives_nothing_where_its_positions_are_over() -> None:
    edit = RowEdit([Dose(vector(), 1.0)], "add", "last")
    hidden: Float[Tensor, "1 1 d_model"] = torch.zeros(1, 1, WIDTH)
    assert edit(hidden) is not None and edit(hidden) is None
