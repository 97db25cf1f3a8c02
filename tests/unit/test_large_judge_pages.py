"""Pages of a large judge and of a long training stay small enough to send, and keep what matters most."""

import numpy as np

from src.utils.circuits.neurons import NeuronTable
from src.utils.watching.epoch_metrics import EpochMetrics
from src.visualizations.circuit_neurons import neuron_page
from src.visualizations.figure_page import page_html
from src.visualizations.progress_figures import evenly, judge_progress_page
from tests.unit.test_study_pages import LARGEST

LAYERS, NEURONS = 36, 9728  # of Qwen3-4B


def test_a_large_models_neuron_map_draws_the_claimed_ones_first() -> None:
    random = np.random.default_rng(0)
    auroc = random.uniform(0.3, 0.7, (LAYERS, NEURONS))
    auroc[20, :100] = 0.99  # more than a block's part of the points
    is_told = auroc == 0.99
    low = np.where(is_told, 1e-9, 1.0)
    table = NeuronTable(auroc, low, np.stack([auroc, auroc]), is_told, np.abs(auroc - 0.5), low, auroc)
    page = neuron_page("epoch_1_neuron_map.html", "epoch 1", table, [], [], 20)
    assert len(page_html(page).encode()) <= LARGEST
    (points,) = [trace for trace in page.figure.data if trace.text is not None]
    assert sum(": AUROC 0.990" in text for text in points.text) == 100
    titles = [note.text for note in page.figure.layout.annotations]
    assert any(f"({len(points.x):,} of {LAYERS * NEURONS:,} drawn" in title for title in titles)
    assert {text.split(",")[0] for text in points.text} == {f"block {layer}" for layer in range(LAYERS)}


def test_a_thousand_epochs_and_a_hundred_thousand_losses() -> None:
    scores = {"auroc": 0.9, "auprc": 0.9, "f1": 0.8, "accuracy": 0.8, "recall_at_fpr_5": 0.5, "n": 128.0}
    margins = {f"margin/{label}/{q}": 0.123456789 for label in ("safe", "unsafe") for q in (0.1, 0.5, 0.9)}
    records = [
        EpochMetrics(
            unit="epoch", number=number, step=100 * number, is_visualised=True, metrics=scores | margins,
            trainer_metrics={"eval_loss": 1 / (number + 1)}, training_seconds=1.23456, watching_seconds=2.34567,
        )
        for number in range(1001)
    ]  # fmt: skip
    page = judge_progress_page(records, [(step, 1 / step) for step in range(1, 100_001)])
    assert len(page_html(page).encode()) <= LARGEST
    (loss,) = [trace for trace in page.figure.data if trace.name == "training loss"]
    assert (loss.x[0], loss.x[-1], len(loss.x)) == (1, 100_000, 2000)


def test_what_is_thinned_keeps_both_ends() -> None:
    assert evenly(3, 5).tolist() == [0, 1, 2]
    assert evenly(101, 3).tolist() == [0, 50, 100]
