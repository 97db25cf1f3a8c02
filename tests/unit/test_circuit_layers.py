"""Contrast pairs, layer patching, divergence and layer probes, on a model whose circuit is set by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from src.utils.circuits.contrast import FAIR_SAMPLE, LIKE_LENGTH, ContrastPairs, contrast_pairs, has_gap
from src.utils.circuits.divergence import Divergence, divergence_layer, first_layer
from src.utils.circuits.layer_probes import exchanged, fold_auroc, held_out_scores, probe_layers
from src.utils.circuits.patching import ATTENTION, DIFFERING, LAST, MLP, LayerPatching, patch_layers
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt
from src.utils.sites import Site, edit_sites
from src.utils.watching.pictures import Budget
from src.visualizations.circuit_figures import probe_line
from tests.planted_circuit import (
    COPY,
    N_LAYERS,
    PAD,
    READ,
    answer_margin,
    planted_data,
    planted_model,
    random_pairs,
)
from tests.tiny_models import tiny_model

SEEDS = 100


def planted_pairs(count: int) -> ContrastPairs:
    return contrast_pairs(*planted_data(count), PAD)


def test_pairs_are_of_one_length_and_of_opposite_labels() -> None:
    def sample(name: str, unsafe: bool, pair: str | None) -> SafetySample:
        return SafetySample(name, "", unsafe, "", "", pair)

    samples = [
        sample("a", True, "p"), sample("b", False, "p"), sample("c", False, "p"), sample("d", True, None),
        sample("e", False, "longer"), sample("f", True, "longer"), sample("g", True, "alone"),
        sample("h", False, "a"), sample("i", True, "a"),
    ]  # fmt: skip
    ids = [(7, 8), (7, 9), (7, 5), (1, 1), (1, 2), (1, 2, 3), (4, 4), (1, 2, 3), (1, 4, 3)]
    pairs = contrast_pairs(samples, [EncodedPrompt(row, (0, len(row))) for row in ids], PAD)
    assert pairs.pair_ids == ("a", "p"), "neither the pair of two lengths nor samples without a partner"
    assert pairs.safe.tolist() == [[1, 2, 3], [7, 9, PAD]] and pairs.unsafe.tolist() == [[1, 4, 3], [7, 8, PAD]]
    assert pairs.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert pairs.last.tolist() == [[False, False, True], [False, True, False]]
    assert pairs.differing.tolist() == [[False, True, False], [False, True, False]]
    assert pairs.part(slice(1, 2)).safe.tolist() == [[7, 9]]
    assert len(contrast_pairs([], [], PAD)) == 0


def test_pairs_of_like_length_share_a_batch_and_the_first_are_a_fair_sample() -> None:
    samples, rows = planted_data(42)
    pairs = contrast_pairs(samples, rows, PAD)
    lengths = pairs.mask.sum(dim=1).numpy()
    batches = [lengths[one] for one in Budget(600.0).slices(len(pairs), least=4, most=LIKE_LENGTH)]
    assert [len(one) for one in batches] == [4, 12, 16, 10]
    in_order = sorted(sample.pair_id for sample in samples if sample.unsafe and sample.pair_id)
    assert set(pairs.pair_ids[:FAIR_SAMPLE]) == set(in_order[:FAIR_SAMPLE]), "whatever their lengths"
    assert (np.diff(lengths[:FAIR_SAMPLE]) <= 0).all() and (np.diff(lengths[FAIR_SAMPLE:]) <= 0).all()


def test_patching_finds_the_planted_layers_exactly() -> None:
    model, pairs = planted_model(), planted_pairs(12)
    found = patch_layers(answer_margin(model), pairs)
    assert found.is_readable
    expected = {
        LAST: [float(layer > COPY) for layer in range(N_LAYERS + 1)],
        DIFFERING: [float(layer <= COPY) for layer in range(N_LAYERS + 1)],
        ATTENTION: [float(block == COPY) for block in range(N_LAYERS)],
        MLP: [float(block == READ) for block in range(N_LAYERS)],
    }
    for kind, shares in expected.items():
        for direction in found.shares(kind, np.ones((1, len(pairs)))):
            np.testing.assert_allclose(direction[0], shares, atol=1e-5, err_msg=kind)
    assert divergence_layer(found) == Divergence(COPY + 1, COPY + 1, COPY + 1)


def test_patched_margins_are_those_of_a_pass_by_hand() -> None:
    model, pairs = tiny_model(), random_pairs(3, 7)
    margin_of = answer_margin(model)
    found = patch_layers(margin_of, pairs)
    with torch.no_grad():
        of_unsafe = model(pairs.unsafe, output_hidden_states=True).hidden_states
        for layer in range(N_LAYERS):

            def last_of_unsafe(hidden: torch.Tensor, layer: int = layer) -> torch.Tensor:
                return torch.cat([hidden[:, :-1], of_unsafe[layer][:, -1:]], dim=1)

            with edit_sites(model.get_decoder(), {Site("resid_pre", layer): last_of_unsafe}):
                margin = margin_of(pairs.safe, pairs.mask)
            np.testing.assert_allclose(found.denoised[LAST][layer], margin, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.denoised[LAST][-1], found.unsafe, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.noised[DIFFERING][0], found.safe, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.denoised[DIFFERING][-1], found.safe, rtol=1e-5, atol=1e-6)


def test_pairs_whose_labels_are_shuffled_have_no_gap_and_no_divergence() -> None:
    model, pairs = planted_model(), planted_pairs(24)
    found = patch_layers(answer_margin(model), pairs)
    claims = 0
    for seed in range(SEEDS):
        flips = np.random.default_rng(seed).random(len(pairs)) < 0.5

        def swapped(one: np.ndarray, other: np.ndarray, flips: np.ndarray = flips) -> np.ndarray:
            return np.where(flips, other, one)

        shuffled = LayerPatching(
            swapped(found.safe, found.unsafe),
            swapped(found.unsafe, found.safe),
            {LAST: swapped(found.denoised[LAST], found.noised[LAST])},
            {LAST: swapped(found.noised[LAST], found.denoised[LAST])},
        )
        claims += divergence_layer(shuffled, resamples=20) is not None
    assert claims == 0
    assert not has_gap(np.zeros(2), np.ones(2)), "two pairs are none"
    assert has_gap(np.zeros(5), np.ones(5)) and not has_gap(np.ones(5), np.zeros(5))


def test_the_first_layer_over_the_threshold() -> None:
    shares = np.array([[0.0, 0.5, 0.2, 1.0], [0.0, 0.4, 0.6, 1.0], [np.nan] * 4])
    assert first_layer(shares).tolist() == [1, 2, 3]


def test_held_out_scores_are_those_of_scikit_learns_ridge() -> None:
    rng = np.random.default_rng(0)
    rows, unsafe, fold = rng.normal(size=(30, 8)), rng.random(30) < 0.5, np.arange(30) % 3
    found = held_out_scores(rows, np.where(unsafe, 1.0, -1.0)[None], fold)[0]
    for number in range(3):
        train = fold != number
        mean = rows[train].mean(axis=0)
        scale = ((rows[train] - mean) ** 2).sum(axis=1).mean()
        own = Ridge(alpha=scale).fit(rows[train] - mean, np.where(unsafe[train], 1.0, -1.0))
        expected = own.predict(rows[~train] - mean) - own.intercept_
        np.testing.assert_allclose(found[~train], expected, atol=1e-10)
    one_fold = fold_auroc(found[None], unsafe[None], np.zeros(30))
    assert one_fold[0] == pytest.approx(roc_auc_score(unsafe, found))


def probe_data(shift: float, seed: int, n_pairs: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three layers of noise that pairs share in part; only layer 1 knows the label."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_pairs), 2).astype(str)
    unsafe = np.tile([False, True], n_pairs)
    layers = rng.normal(size=(3, 2 * n_pairs, 12)) + np.repeat(rng.normal(size=(3, n_pairs, 12)), 2, axis=1)
    layers[1, unsafe, 0] += shift
    return layers, unsafe, groups


def test_a_planted_layer_is_found_beside_noise_and_beside_itself_before_training() -> None:
    layers, unsafe, groups = probe_data(4.0, seed=0)
    before = probe_layers(probe_data(0.0, seed=0)[0], unsafe, groups)
    assert before is not None and not before.is_learned.any()
    found = probe_layers(layers, unsafe, groups, before.scores)
    assert found is not None
    assert found.is_learned.tolist() == [False, True, False]
    assert found.auroc[1, 0] > 0.9 and found.auroc[1, 1] <= found.auroc[1, 0] <= found.auroc[1, 2]
    assert found.excess[0].tolist() == [0, 0, 0], "a layer that has not moved has learned exactly nothing"
    again = probe_layers(layers, unsafe, groups, found.scores)
    assert again is not None and not again.is_learned.any(), "what was there before training is not learned"
    assert probe_layers(layers[:, :6], unsafe[:6], groups[:6]) is None, "too few groups for the folds"


def test_no_layer_is_claimed_under_shuffled_labels() -> None:
    """A hundred shuffles of a real effect's labels; at a level of 5% a few of them would be claimed."""
    smallest = []
    for seed in range(SEEDS):
        layers, unsafe, groups = probe_data(4.0, seed=seed, n_pairs=16)
        (shuffled,) = exchanged(unsafe, groups, np.random.default_rng(seed), count=1)
        found = probe_layers(layers, shuffled, groups, resamples=2)
        assert found is not None and not found.is_learned.any()
        smallest.append(found.p.min())
    assert 0 < sum(p <= 0.05 for p in smallest) <= 12, "at 5%: more than twelve has probability 0.0015 (binomial)"


def test_of_many_layers_that_say_as_much_as_before_none_is_learned() -> None:
    """A signal of equal strength in new noise: with an interval for each layer, 12 of these 16 runs claim one."""
    unsafe, groups = np.tile([False, True], 48), np.repeat(np.arange(48), 2).astype(str)
    claimed = []
    for seed in range(16):
        now, before = np.random.default_rng(seed).normal(size=(2, 37, 96, 8))
        now[:, unsafe, 0] += 1.2
        before[:, unsafe, 0] += 1.2
        old = probe_layers(before, unsafe, groups, shuffles=1, resamples=2)
        assert old is not None
        found = probe_layers(now, unsafe, groups, old.scores, shuffles=1, resamples=200)
        assert found is not None
        claimed.append(bool((found.excess[:, 1] > 0).any()))
    assert sum(claimed) <= 2, claimed


def test_groups_of_one_class_are_shuffled_as_wholes() -> None:
    groups, unsafe = np.repeat(np.arange(40), 3).astype(str), np.repeat(np.arange(40) % 2 == 1, 3)
    (labels,) = exchanged(unsafe, groups, np.random.default_rng(0), count=1)
    assert (labels.reshape(-1, 3) == labels.reshape(-1, 3)[:, :1]).all() and labels.sum() == unsafe.sum()
    assert 20 < (labels != unsafe).sum() < 100
    rows = np.random.default_rng(1).normal(size=(1, 120, 4))
    rows[0, unsafe] += 4
    found = probe_layers(rows, unsafe, groups, resamples=2)
    assert found is not None and found.is_learned.all(), "labels that never change are no null"


def test_few_pairs_are_said_to_be_too_few_instead_of_silently_telling_nothing() -> None:
    few, many = (probe_layers(*probe_data(20.0, seed=0, n_pairs=n), resamples=2) for n in (8, 30))
    assert few is not None and few.auroc[1, 0] == 1 and not few.is_learned.any() and not few.is_decidable[1]
    assert probe_line(few).endswith("none found; too little data to tell of 1 of 3 layers, even at an AUROC of 1")
    assert (
        many is not None
        and many.is_decidable.all()
        and probe_line(many).endswith("(corrected over layers, p ≤ 0.001 against shuffled labels): 1")
    )


def test_shuffling_keeps_each_pair_and_the_number_of_single_rows() -> None:
    groups = np.array(["a", "a", "b", "b", "c", "d", "e", "f"])
    unsafe = np.array([True, False, False, True, True, True, False, False])
    seen = {tuple(labels.tolist()) for labels in exchanged(unsafe, groups, np.random.default_rng(0), count=60)}
    assert len(seen) > 10
    for labels in seen:
        assert labels[0] != labels[1] and labels[2] != labels[3] and sum(labels[4:]) == 2
