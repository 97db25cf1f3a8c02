"""Layers and their change: Hugging Face's hidden states, a planted layer, and frozen layers that move by nothing."""

import numpy as np
import pytest
import torch

from src.utils.watching.layer_activation import (
    change_since,
    count_frozen,
    last_token_stream,
    norms,
    residual_stream,
)
from tests.tiny_models import FAMILIES, N_LAYERS, random_prompts, tiny_model, with_adapter
from tests.watched_training import judge_model


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_hidden_states_and_the_last_one_before_the_norm(family: str) -> None:
    model = tiny_model(family)
    ids = list(random_prompts(1, longest=20)[0].ids)
    stream = residual_stream(model, ids)
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        np.testing.assert_array_equal(stream[layer], states[layer][0].numpy())
    normed = model.get_submodule("model.norm")(torch.from_numpy(stream[-1]))
    torch.testing.assert_close(normed[None], states[-1])
    np.testing.assert_allclose(norms(stream), np.sqrt((stream.astype(float) ** 2).sum(axis=2)), rtol=1e-12)


def test_the_last_token_is_found_behind_padding() -> None:
    model = tiny_model()
    rows = [prompt.ids for prompt in random_prompts(5)]
    found = last_token_stream(model, rows, pad_id=0)
    for number, row in enumerate(rows):
        np.testing.assert_allclose(found[:, number], residual_stream(model, row)[:, -1], rtol=1e-4, atol=1e-5)


def test_a_planted_change_shows_from_its_block_on_and_nowhere_before() -> None:
    model = tiny_model()
    ids = random_prompts(1, seed=3)[0].ids
    before = residual_stream(model, ids)
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.down_proj.weight").add_(0.01)
    change = change_since(residual_stream(model, ids), before)
    assert (change.relative[:2] == 0).all() and (change.largest[:2] == 0).all()
    assert (change.relative[2:] > 0).all()
    assert change.faults(n_frozen=2) == [] and change.faults(n_frozen=3) == [2]


def test_change_is_the_share_of_the_old_length() -> None:
    before = np.array([[[3.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    after = before + np.array([[[0.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, np.nan]]])
    change = change_since(after, before)
    np.testing.assert_allclose(change.relative, [[0.1, 0.0], [0.0, np.nan]])
    assert change.largest[0] == 0.5 and change.faults(2) == [0, 1], "what is no number is a fault"


@pytest.mark.parametrize(("n_frozen", "layers"), [(0, 1), (1, 2), (2, 3)])
def test_frozen_layers_are_the_embeddings_and_the_frozen_blocks(n_frozen: int, layers: int) -> None:
    assert count_frozen(judge_model(n_frozen)) == layers


def test_an_adapter_freezes_the_blocks_that_it_does_not_reach() -> None:
    adapted = with_adapter(tiny_model())
    assert count_frozen(adapted) == 1
    for name, parameter in adapted.named_parameters():
        parameter.requires_grad_("lora_" in name and "layers.2." in name)
    assert count_frozen(adapted) == 3
    assert count_frozen(tiny_model().requires_grad_(True)) == 0
