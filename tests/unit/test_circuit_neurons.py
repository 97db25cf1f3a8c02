"""Neurons: the test of each against SciPy and by hand, a planted safety neuron, ablation, shuffled labels."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from src.utils.circuits.neuron_ablation import MODES, Mode, ablate_neurons, ablated, matched_neurons, other_rows
from src.utils.circuits.neurons import (
    excess_separation,
    neuron_activations,
    neuron_table,
    placements,
    separation,
)
from src.utils.circuits.partial_passes import last_tokens
from src.utils.safety_judge.samples import labels
from src.utils.safety_judge.scoring import pad_right
from src.utils.sites import Site, edit_sites
from tests.planted_circuit import NEURON, PAD, READ, WIDTH, answer_margin, planted_data, planted_model, random_pairs
from tests.tiny_models import tiny_model

SEEDS = 100


def noise(seed: int, rows: int = 48, before: bool = False) -> np.ndarray:
    """Two layers of ten neurons; neuron (1, 3) fires on unsafe rows (the second half) unless it is `before`."""
    values = np.random.default_rng(seed).normal(size=(2, rows, 10))
    if not before:
        values[1, rows // 2 :, 3] += 3
    return values


def rows_of(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(count) >= count // 2, np.tile(np.arange(count // 2), 2).astype(str)


def test_separation_is_scikit_learns_auroc_and_scipys_p() -> None:
    values, (unsafe, _) = noise(0)[1].round(1), rows_of(48)
    values[:, 7] = 2.0
    auroc, p = separation(values, unsafe)
    for neuron in range(10):
        assert auroc[neuron] == pytest.approx(roc_auc_score(unsafe, values[:, neuron]))
        if neuron != 7:
            expected = mannwhitneyu(values[unsafe, neuron], values[~unsafe, neuron], method="asymptotic").pvalue
            assert p[neuron] == pytest.approx(expected)
    assert (auroc[7], p[7]) == (0.5, 1.0), "a neuron that never varies says nothing"


def test_excess_is_the_paired_difference_with_delongs_variance() -> None:
    unsafe, _ = rows_of(48)
    new, old = noise(1)[1], noise(1, before=True)[1] + 0.3 * np.random.default_rng(5).normal(size=(48, 10))
    excess, p = excess_separation(new, old, unsafe)
    for neuron in range(10):
        ours, theirs = (roc_auc_score(unsafe, values[:, neuron]) for values in (new, old))
        assert excess[neuron] == pytest.approx(abs(ours - 0.5) - abs(theirs - 0.5))
    higher = (new[unsafe][:, None, 3] > new[~unsafe][None, :, 3]).mean(axis=1)
    np.testing.assert_allclose(placements(new, unsafe)[0][:, 3], higher)
    assert p[3] < 0.001
    born, p_born = excess_separation(unsafe[:, None] * 2.0, np.zeros((48, 1)), unsafe)
    assert (born[0], p_born[0]) == (0.5, 0), "constant before, and now larger in every unsafe row"
    same, p_same = excess_separation(new, new, unsafe)
    assert (same == 0).all() and (p_same == 1).all()


def test_one_planted_neuron_is_claimed_and_no_other() -> None:
    unsafe, groups = rows_of(48)
    found = neuron_table(noise(2), unsafe, groups)
    assert found is not None and found.top(5) == [(1, 3)] and found.auroc[1, 3] > 0.9
    learned = neuron_table(noise(2), unsafe, groups, noise(2, before=True))
    assert learned is not None and learned.top(5) == [(1, 3)]
    assert np.sum(learned.excess != 0) == 1, "neurons that have not changed have learned exactly nothing"
    old = neuron_table(noise(2), unsafe, groups, noise(2))
    assert old is not None and old.separates[1, 3] and old.top(5) == []
    assert neuron_table(noise(2, rows=20), *rows_of(20)) is None, "halves of ten rows replicate nothing"


def test_no_neuron_survives_shuffled_labels() -> None:
    """Correction, replication in both halves: over a hundred shuffles of a real effect's labels, none is claimed."""
    unsafe, groups = rows_of(48)
    claims = 0
    for seed in range(SEEDS):
        shuffled = np.random.default_rng(seed).permutation(unsafe)
        found = neuron_table(noise(seed), shuffled, groups, seed=seed)
        claims += int(found is not None and found.is_claimed.any())
    assert claims == 0


def test_rows_of_one_group_and_class_are_no_independent_findings() -> None:
    """Of 48 groups of six rows that vary together: as 288 rows, noise is claimed in every run."""
    groups, unsafe = np.repeat(np.arange(48), 6).astype(str), np.repeat(np.arange(48) % 2 == 1, 6)
    claims = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(1, 288, 100)) + 1.5 * np.repeat(rng.normal(size=(1, 48, 100)), 6, axis=1)
        found = neuron_table(values, unsafe, groups, seed=seed)
        assert found is not None
        claims += int(found.is_claimed.any())
        values[0, unsafe, 3] += 5
        again = neuron_table(values, unsafe, groups, values, seed=seed)
        assert again is not None and again.separates[0, 3] and (again.excess == 0).all()
    assert claims == 0


def planted_rows(count: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    samples, rows = planted_data(count)
    return *pad_right(rows, PAD), labels(samples), np.array([sample.group for sample in samples])


def test_the_planted_safety_neuron_is_found_with_its_exact_effect() -> None:
    model = planted_model()
    margin_of = answer_margin(model)
    ids, mask, unsafe, groups = planted_rows(20)
    margin, activations = neuron_activations(model, margin_of, ids, mask)
    found = neuron_table(activations, unsafe, groups)
    assert found is not None and found.top(10) == [(READ, NEURON)] and found.auroc[READ, NEURON] == 1.0
    randoms = matched_neurons(activations, [(READ, NEURON)], sets=5)
    separation_now = margin[unsafe].mean() - margin[~unsafe].mean()
    # without the neuron (and with its mean, which is 0 over pairs) the logits of both answers are equal
    mean = ablate_neurons(last_tokens(margin_of, ids, mask), unsafe, activations, [(READ, NEURON)], randoms, "mean")
    assert mean.separation == pytest.approx(separation_now) and mean.separation > 1
    assert mean.drop == pytest.approx(separation_now, rel=1e-5)
    np.testing.assert_allclose(mean.random_drops, 0, atol=1e-6)
    assert mean.p == pytest.approx(1 / 6)
    # resampled: row i's final norm and the decision written by the neuron of row j, by the formula of the norm
    resampled = ablate_neurons(
        last_tokens(margin_of, ids, mask), unsafe, activations, [(READ, NEURON)], [], "resample", seed=3
    )
    neuron, epsilon = 1.5 * activations[READ, :, NEURON].astype(float), model.config.rms_norm_eps
    others = WIDTH * ((4 * neuron / margin) ** 2 - epsilon) - neuron**2  # the squared length without the decision
    taken = neuron[other_rows(len(unsafe), 3)]
    exchanged = 4 * taken / np.sqrt((others + taken**2) / WIDTH + epsilon)
    expected = separation_now - (exchanged[unsafe].mean() - exchanged[~unsafe].mean())
    assert resampled.drop == pytest.approx(expected, rel=1e-4)


def test_ablation_is_the_mlp_without_the_neurons_by_hand() -> None:
    model, pairs = tiny_model(), random_pairs(4, 6)
    margin_of = answer_margin(model)
    _, activations = neuron_activations(model, margin_of, pairs.safe, pairs.mask)
    chosen, values = [(1, 7), (1, 2)], np.zeros_like(activations)
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach()
    added = torch.stack([weight[:, neuron] for _, neuron in chosen])
    was = torch.from_numpy(activations[1][:, [neuron for _, neuron in chosen]])

    def without(hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([hidden[:, :-1], hidden[:, -1:] - (was @ added)[:, None]], dim=1)

    with torch.no_grad():
        with edit_sites(model.get_decoder(), {Site("mlp_out", 1): without}):
            expected = margin_of(pairs.safe, pairs.mask)
        with ablated(model, pairs.mask, values, chosen):
            torch.testing.assert_close(margin_of(pairs.safe, pairs.mask), expected, rtol=1e-4, atol=1e-5)
        assert not any(module._forward_pre_hooks for module in model.modules())


def test_random_neurons_are_of_the_same_layers_and_vary_as_much() -> None:
    activations = np.random.default_rng(0).normal(size=(3, 40, 200)) * np.linspace(0.1, 5, 200)
    chosen = [(0, 10), (0, 11), (2, 190)]
    spread = activations.std(axis=1)
    for one in matched_neurons(activations, chosen, sets=20):
        assert [layer for layer, _ in one] == [0, 0, 2] and len(set(one)) == 3 and not set(one) & set(chosen)
        for (layer, neuron), (_, other) in zip(chosen, one, strict=True):
            assert abs(spread[layer, neuron] - spread[layer, other]) < 1.2
    assert all(len(set(one)) == 1 for one in matched_neurons(activations[:, :, :2], [(0, 0)], sets=3))


def test_resampling_leaves_no_row_its_own() -> None:
    for count in (2, 5, 31):
        partner = other_rows(count, seed=1)
        assert sorted(partner) == list(range(count)) and not (partner == np.arange(count)).any()


@pytest.mark.parametrize("mode", MODES)
def test_neurons_that_do_nothing_take_nothing(mode: Mode) -> None:
    model = planted_model()
    ids, mask, unsafe, _ = planted_rows(8)
    _, activations = neuron_activations(model, answer_margin(model), ids, mask)
    idle = [(0, 1), (READ, NEURON + 1)]
    found = ablate_neurons(last_tokens(answer_margin(model), ids, mask), unsafe, activations, idle, [], mode)
    assert found.drop == pytest.approx(0, abs=1e-6)
