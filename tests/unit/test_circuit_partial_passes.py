"""Passes over some columns or blocks give the numbers of whole passes, on padded pairs that begin alike."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from src.utils.circuits.attribution import exact_node_effects
from src.utils.circuits.contrast import ContrastPairs, Margin, contrast_pairs
from src.utils.circuits.graph import Graph
from src.utils.circuits.neuron_ablation import ablated
from src.utils.circuits.partial_passes import after_common_start, is_all_attended, last_tokens, resumed_at
from src.utils.circuits.patching import ATTENTION, DIFFERING, LAST, MLP, patch_layers
from src.utils.circuits.runs import PairRuns, run_with_replaced
from src.utils.sites import AnyModel, Site, blocks_of, decoder_of, edit_sites, resid_site
from tests.planted_circuit import PAD, answer_margin, planted_data
from tests.tiny_models import N_LAYERS, tiny_gemma, tiny_model, with_adapter

MODELS: dict[str, Callable[[], AnyModel]] = {
    "qwen3": tiny_model,
    "llama": lambda: tiny_model("llama"),
    "adapter": lambda: with_adapter(tiny_model()),
    "windows": tiny_gemma,
}
START = (11, 7, 9)


def pairs_that_begin_alike(count: int = 5) -> ContrastPairs:
    """Of several lengths; the planted word, where they differ, stands anywhere after `START`."""
    pairs = contrast_pairs(*planted_data(count), PAD)
    start = torch.tensor(START).expand(count, -1)
    return ContrastPairs(
        torch.cat([start, pairs.safe], dim=1),
        torch.cat([start, pairs.unsafe], dim=1),
        torch.cat([torch.ones_like(start), pairs.mask], dim=1),
        pairs.pair_ids,
    )


@pytest.fixture(params=MODELS)
def margin(request: pytest.FixtureRequest) -> Margin:
    return answer_margin(MODELS[request.param]().eval())


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def test_margins_of_some_columns_are_those_of_all(margin: Margin) -> None:
    pairs = pairs_that_begin_alike()
    is_cut = is_all_attended(margin.model)
    assert is_cut == (decoder_of(margin.model).config.model_type != "gemma2")
    columns, own = after_common_start(margin, pairs)
    assert own.mask.shape[1] == pairs.mask.shape[1] - len(START) * is_cut
    for whole, ids in ((pairs.safe, own.safe), (pairs.unsafe, own.unsafe)):
        expected = numbers(margin(whole, pairs.mask))
        for _ in range(2):  # what is cached stays as it is
            np.testing.assert_allclose(numbers(columns(ids, own.mask)), expected, rtol=1e-4, atol=1e-5)
        ends = last_tokens(margin, whole, pairs.mask)
        assert ends.ids.shape[1] == (1 if is_cut else pairs.mask.shape[1])
        np.testing.assert_allclose(numbers(ends(ends.ids, ends.mask)), expected, rtol=1e-4, atol=1e-5)


def test_neurons_ablated_at_the_last_token_alone_take_what_they_take_in_whole_passes(margin: Margin) -> None:
    pairs = pairs_that_begin_alike()
    ends = last_tokens(margin, pairs.safe, pairs.mask)
    values = np.full((N_LAYERS, len(pairs), 4), 3.0, dtype=np.float32)
    with torch.no_grad(), ablated(margin.model, pairs.mask, values, [(0, 1), (2, 3)]):
        whole = numbers(margin(pairs.safe, pairs.mask))
    with torch.no_grad(), ablated(margin.model, ends.mask, values, [(0, 1), (2, 3)]):
        np.testing.assert_allclose(numbers(ends(ends.ids, ends.mask)), whole, rtol=1e-4, atol=1e-5)
    assert np.abs(whole - numbers(margin(pairs.safe, pairs.mask))).max() > 1e-3


def test_patched_layers_are_those_of_whole_passes_in_every_kind_and_direction(margin: Margin) -> None:
    model, pairs = margin.model, pairs_that_begin_alike()
    decoder = decoder_of(model)
    found = patch_layers(margin, pairs)
    sites = {
        LAST: [resid_site(layer, N_LAYERS) for layer in range(N_LAYERS + 1)],
        DIFFERING: [resid_site(layer, N_LAYERS) for layer in range(N_LAYERS + 1)],
        ATTENTION: [Site("attn_out", block) for block in range(N_LAYERS)],
        MLP: [Site("mlp_out", block) for block in range(N_LAYERS)],
    }
    where = {LAST: pairs.last, DIFFERING: pairs.differing}

    def by_hand(into: Tensor, source: Tensor, kind: str, site: Site) -> np.ndarray:
        kept: list[Tensor] = []
        with torch.no_grad():
            with edit_sites(decoder, {site: kept.append}):
                margin(source, pairs.mask)
            chosen = where.get(kind, pairs.mask.bool())[..., None]
            with edit_sites(decoder, {site: lambda hidden: torch.where(chosen, kept[0], hidden)}):
                return numbers(margin(into, pairs.mask))

    for kind, own in sites.items():
        for at, site in enumerate(own):
            expected = by_hand(pairs.safe, pairs.unsafe, kind, site), by_hand(pairs.unsafe, pairs.safe, kind, site)
            np.testing.assert_allclose(found.denoised[kind][at], expected[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.noised[kind][at], expected[1], rtol=1e-4, atol=1e-5)
    assert np.abs(found.denoised[ATTENTION] - found.safe).max() > 1e-3


def test_a_nodes_effect_is_that_of_all_edges_that_leave_it() -> None:
    margin, pairs = answer_margin(tiny_model()), pairs_that_begin_alike()
    runs = PairRuns.of(margin, Graph.of(margin.model), pairs)
    effects = exact_node_effects(runs, range(len(runs.graph.writers)))
    for writer, effect in enumerate(effects):
        leaving = np.zeros_like(runs.graph.edges)
        leaving[:, writer] = runs.graph.edges[:, writer]
        replaced = run_with_replaced(runs, runs.safe, leaving, runs.unsafe.written)
        np.testing.assert_allclose(effect, numbers(replaced - runs.safe.margins), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(effects[0], numbers(runs.unsafe.margins - runs.safe.margins), rtol=1e-4, atol=1e-5)


def test_blocks_that_are_skipped_run_again_afterwards_however_it_ends() -> None:
    model = tiny_model()
    margin, pairs = answer_margin(model), pairs_that_begin_alike()
    blocks = list(blocks_of(model.get_decoder()))
    calls: list[int] = []
    counted = blocks[1].forward  # as a library that places layers on devices does: on the instance

    def own(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return counted(*args, **kwargs)

    blocks[1].forward = own
    with torch.no_grad():
        expected = margin(pairs.safe, pairs.mask)
        stream = model(pairs.safe, pairs.mask, output_hidden_states=True).hidden_states[2]
        calls.clear()
        with resumed_at(model, 2, stream):
            torch.testing.assert_close(margin(pairs.safe, pairs.mask), expected)
        assert not calls
        with pytest.raises(KeyError), resumed_at(model, N_LAYERS, stream):
            raise KeyError
        torch.testing.assert_close(margin(pairs.safe, pairs.mask), expected)
    assert calls and blocks[1].forward is own and "forward" not in vars(blocks[0])
