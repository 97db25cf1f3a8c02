"""Token attribution where the truth is known: a linear model, a planted token, completeness, removal by hand."""

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor, nn

from src.utils.safety_judge.scoring import encode
from src.utils.watching.pictures import Budget
from src.utils.watching.safety_pictures import margins_of
from src.utils.watching.token_attribution import (
    FIRST_PARTS,
    POINTS_A_PART,
    RANDOM_ORDERS,
    attribute_tokens,
    empty_token,
    removal_curves,
    without_request,
)
from tests.tiny_models import tokenizer
from tests.watched_training import MAX_LENGTH, judge_model, judge_template, planted_samples

VOCABULARY, WIDTH = 50, 8
PLENTY = 600.0


class LinearJudge(nn.Module):
    """A margin that is linear in the embeddings, each position with a weight of its own."""

    def __init__(self, length: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.weight = nn.Parameter(torch.randn(length, WIDTH))

    def forward(self, ids: Tensor) -> Tensor:
        return (self.embed(ids) * self.weight).sum(dim=(1, 2))

    def truth(self, ids: Tensor, baseline: Tensor) -> np.ndarray:
        moved = (self.embed.weight[ids] - self.embed.weight[baseline]).double()
        return (moved * self.weight.double()).sum(dim=1).detach().numpy()


class PlantedJudge(nn.Module):
    """A saturated, far from linear margin that rests on one token, wherever it stands, and a little on the others."""

    def __init__(self, planted: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.key = nn.Parameter(self.embed.weight[planted].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        match = (self.embed(ids) @ self.key) / self.key.norm() ** 2
        return 8 * torch.tanh(torch.relu(match - 0.6).pow(2).sum(dim=1) * 3) + 0.01 * match.sum(dim=1)


def qwen() -> tuple[torch.nn.Module, list[tuple[Tensor, Tensor, tuple[int, int]]]]:
    """A random judge and requests with their baselines."""
    model = judge_model().eval()
    newline = tokenizer().encode("\n", add_special_tokens=False)[-1]
    rows = encode(tokenizer(), judge_template(), [one.prompt for one in planted_samples(6, seed=5)], MAX_LENGTH)
    return model, [
        (torch.tensor(row.ids), torch.tensor(without_request(row.ids, row.content_span, newline)), row.content_span)
        for row in rows
    ]


def test_a_linear_models_attribution_is_exact_whatever_the_points() -> None:
    ids, baseline = torch.arange(3, 12), torch.full((9,), 1)
    judge = LinearJudge(9)
    for budget in (Budget(0.0), Budget(PLENTY)):
        found, _ = attribute_tokens(judge, judge.embed, ids, baseline, budget)
        np.testing.assert_allclose(found.values, judge.truth(ids, baseline), rtol=1e-5, atol=1e-5)
        assert found.delta == pytest.approx(0, abs=1e-4) and found.has_converged
        assert found.margin == pytest.approx(float(judge(ids[None]).detach()), rel=1e-6)
        assert found.baseline_margin == pytest.approx(float(judge(baseline[None]).detach()), rel=1e-6)


def test_a_planted_token_is_found_at_every_place() -> None:
    judge, planted = PlantedJudge(planted=17), 17
    others = [5, 9, 23, 31, 40, 44]
    for place in range(7):
        ids = torch.tensor([*others[:place], planted, *others[place:]])
        found, was_cut = attribute_tokens(judge, judge.embed, ids, torch.ones_like(ids), Budget(PLENTY))
        assert found.has_converged and not was_cut
        assert int(np.abs(found.values).argmax()) == place
        assert found.values[place] > 0.9 * (found.margin - found.baseline_margin) > 3


def test_attributions_of_a_transformer_are_complete_and_leave_the_template_at_zero() -> None:
    model, rows = qwen()
    margin_of = margins_of(model, judge_template())  # ty: ignore[invalid-argument-type]
    embedding = model.get_submodule("model.embed_tokens")
    for ids, baseline, (start, end) in rows:
        found, _ = attribute_tokens(margin_of, embedding, ids, baseline, Budget(PLENTY))
        with torch.no_grad():
            both = [float(margin_of(one[None])) for one in (ids, baseline)]
        assert (found.margin, found.baseline_margin) == pytest.approx(both, abs=1e-4)
        assert found.values.sum() - (both[0] - both[1]) == pytest.approx(found.delta, abs=1e-3)
        assert found.has_converged and abs(found.delta) <= max(0.05, 0.05 * abs(both[0] - both[1]))
        outside = np.concatenate([found.values[:start], found.values[end:]])
        assert (outside == 0).all() and (found.values[start:end] != 0).all()


def test_integrated_gradients_agree_with_a_riemann_sum_over_embeddings() -> None:
    model, rows = qwen()
    ids, baseline, _ = rows[0]
    template = judge_template()
    embedding = model.get_submodule("model.embed_tokens")
    found, _ = attribute_tokens(margins_of(model, template), embedding, ids, baseline, Budget(PLENTY))  # ty: ignore[invalid-argument-type]
    table = model.get_parameter("model.embed_tokens.weight").detach()
    start, moved = table[baseline], table[ids] - table[baseline]
    points = ((torch.arange(400) + 0.5) / 400)[:, None, None]
    inputs = (start + points * moved).requires_grad_()
    logits = model(inputs_embeds=inputs).logits[:, -1]
    (logits[:, template.unsafe_id] - logits[:, template.safe_id]).sum().backward()
    assert inputs.grad is not None
    by_hand = (inputs.grad.mean(dim=0) * moved).sum(dim=1)
    np.testing.assert_allclose(found.values, by_hand.numpy(), atol=0.01)


def test_parts_of_the_path_agree_with_captum_on_the_embedding_itself() -> None:
    model, rows = qwen()
    margin_of = margins_of(model, judge_template())  # ty: ignore[invalid-argument-type]
    embedding = model.get_submodule("model.embed_tokens")
    for ids, baseline, _ in rows[:3]:
        found, _ = attribute_tokens(margin_of, embedding, ids, baseline, Budget(PLENTY))
        explained = LayerIntegratedGradients(margin_of, embedding)
        whole = explained.attribute(ids[None], baselines=baseline[None], n_steps=200).sum(dim=-1)[0]
        np.testing.assert_allclose(found.values, whole.detach().numpy(), atol=0.01)
        assert found.points < 200
    assert not embedding._forward_hooks


class JumpingJudge(nn.Module):
    """A margin that goes from -2 to 2 within a thousandth of the path, once two planted tokens are there together."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.keys = self.embed.weight[[one, two]].detach()

    def forward(self, ids: Tensor) -> Tensor:
        match = torch.relu(self.embed(ids) @ (self.keys / self.keys.norm(dim=1, keepdim=True) ** 2).T).pow(8).sum(dim=1)
        return 2 * torch.tanh(4000 * (match.prod(dim=1) - 0.31))


def test_a_jump_that_evenly_spread_points_miss_is_found() -> None:
    judge = JumpingJudge(17, 31)
    ids = torch.tensor([5, 17, 9, 23, 31, 40])
    baseline = torch.full_like(ids, 1)
    with torch.no_grad():
        change = float(judge(ids[None])) - float(judge(baseline[None]))
    assert change == pytest.approx(4)
    evenly = LayerIntegratedGradients(judge, judge.embed).attribute(ids[None], baselines=baseline[None], n_steps=64)
    assert abs(float(evenly.sum()) - change) > 1
    found, _ = attribute_tokens(judge, judge.embed, ids, baseline, Budget(PLENTY))
    assert found.has_converged and found.values.sum() == pytest.approx(4, abs=0.2)
    assert found.values[[1, 4]].sum() > 0.9 * found.values.sum() and min(found.values[[1, 4]]) > 1


def test_where_padding_is_all_but_zero_a_newline_is_the_empty_token() -> None:
    """Behind RMS norms a path from zero changes in its first instant alone: it needs several times the points."""
    model, rows = qwen()
    template, embedding = judge_template(), model.get_submodule("model.embed_tokens")
    table = model.get_parameter("model.embed_tokens.weight")
    newline = tokenizer().encode("\n", add_special_tokens=False)[-1]
    assert (
        float(table[template.pad_id].detach().norm()) == 0 and empty_token(table, template.pad_id, newline) == newline
    )
    margin_of = margins_of(model, template)  # ty: ignore[invalid-argument-type]
    points = {"padding": 0, "newline": 0}
    for ids, baseline, (start, end) in rows:
        padded = baseline.clone()
        padded[start:end] = template.pad_id
        for name, one in (("padding", padded), ("newline", baseline)):
            points[name] += attribute_tokens(margin_of, embedding, ids, one, Budget(PLENTY))[0].points
    assert points["padding"] > 2 * points["newline"]
    assert empty_token(torch.ones(10, 4), pad_id=2, neutral_id=5) == 2


def test_removal_curves_of_a_linear_model_are_sums_of_its_attributions() -> None:
    ids, baseline = torch.arange(3, 15), torch.full((12,), 1)
    judge, span = LinearJudge(12, seed=3), (2, 12)
    baseline[:2] = ids[:2]
    truth = judge.truth(ids, baseline)
    full = float(judge(ids[None]).detach())
    curves = removal_curves(judge, ids, baseline, span, truth, Budget(PLENTY))
    towards = np.sign(full)
    best = np.sort(towards * truth[2:])[::-1]
    by_hand = [abs(full) - best[:k].sum() for k in curves.counts]
    np.testing.assert_allclose(curves.removed, by_hand, rtol=1e-4, atol=1e-4)
    empty = towards * float(judge(baseline[None]).detach())
    np.testing.assert_allclose(curves.kept, [empty + best[:k].sum() for k in curves.counts], rtol=1e-4, atol=1e-4)
    assert curves.counts.tolist() == list(range(1, 11))
    assert curves.random_removed.shape == (RANDOM_ORDERS, 10)
    eraser = [1, 1, 1, 2, 5]  # 1, 5, 10, 20 and 50% of ten tokens
    assert curves.comprehensiveness == pytest.approx(np.mean([best[:k].sum() for k in eraser]), rel=1e-4)
    assert curves.sufficiency == pytest.approx(abs(full) - empty - np.mean([best[:k].sum() for k in eraser]), rel=1e-3)
    assert curves.comprehensiveness > curves.random_comprehensiveness
    assert curves.sufficiency < curves.random_sufficiency
    for removed, kept in zip(curves.random_removed, curves.random_kept, strict=True):
        assert removed[-1] == pytest.approx(empty, abs=1e-3) and kept[-1] == pytest.approx(abs(full), abs=1e-3)
        np.testing.assert_allclose(removed + kept, abs(full) + empty, rtol=1e-3, atol=1e-3)


def test_a_spent_budget_takes_the_fewest_points_and_one_random_order() -> None:
    judge = PlantedJudge(planted=17)
    ids = torch.tensor([5, 9, 17, 23])
    spent = Budget(0.0)
    found, _ = attribute_tokens(judge, judge.embed, ids, torch.ones_like(ids), spent)
    assert found.points == FIRST_PARTS * POINTS_A_PART
    curves = removal_curves(judge, ids, torch.ones_like(ids), (0, 4), found.values, spent)
    assert len(curves.random_removed) == 1
