"""The pictures of a judge as deep as Qwen3-4B, from made-up measurements: a page has to stay legible at that size."""

import numpy as np

from src.utils.circuits.faithfulness import CircuitChange, CircuitFaithfulness
from src.utils.circuits.graph import Graph
from src.utils.circuits.layer_probes import LayerProbes
from src.utils.circuits.neuron_ablation import Ablation, Mode
from src.utils.circuits.neurons import NeuronTable
from src.utils.circuits.patching import ATTENTION, DIFFERING, LAST, MLP, LayerPatching
from src.utils.watching.layer_activation import LayerChange
from src.visualizations.circuit_diagram import CircuitView, circuit_page
from src.visualizations.circuit_figures import comparison_page
from src.visualizations.circuit_neurons import neuron_page
from src.visualizations.figure_page import FigurePage
from src.visualizations.layer_figures import layer_page
from src.visualizations.training_figures import SampleView

LAYERS, HEADS, KV_HEADS, NEURONS = 36, 32, 8, 9728
FROZEN = 21  # the embeddings and 20 blocks
TOKENS = (
    "<|im_start|>", "user", "\n", "Is", " this", " request", " safe", "?", "\n", "How", " do", " I", " stop", " a",
    " neighbour", "'s", " surveillance", " camera", " from", " recording", " my", " children", " in", " the", " garden",
    ",", " without", " breaking", " the", " law", " myself", "?", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n",
)  # fmt: skip
SPAN = (9, 32)


def large_judge_pages(seed: int = 0) -> list[FigurePage]:
    random = np.random.default_rng(seed)
    return [layers(random), comparison(random), neurons(random), circuits(random)]


def layers(random: np.random.Generator) -> FigurePage:
    depth = np.arange(LAYERS + 1)[:, None]
    norms = 2.0 * 1.12**depth * random.uniform(0.7, 1.4, (LAYERS + 1, len(TOKENS)))
    moved = np.where(depth < FROZEN, 0.0, (depth - FROZEN) / 40 * random.uniform(0, 1, norms.shape))
    last = np.where(depth.T < FROZEN, 0.0, (depth.T - FROZEN) / 40 * random.uniform(0.5, 1.5, (16, LAYERS + 1)))
    return layer_page(
        "epoch_1_sample_2_unsafe_layers.html", "Epoch 1", SampleView(2, "unsafe", TOKENS, SPAN, 2.5), norms,
        LayerChange(moved, moved.max(axis=1)), {"safe": last[:8], "unsafe": 1.3 * last[8:]}, FROZEN, (0.0, 2.2), 0.4,
    )  # fmt: skip


def comparison(random: np.random.Generator) -> FigurePage:
    n, pairs = LAYERS + 1, 24
    rise = 1 / (1 + np.exp(-(np.arange(n) - 22) / 2))
    auroc = 0.55 + 0.42 * rise
    excess = np.where(np.arange(n) < FROZEN, 0.0, 0.2 * rise)
    probes = LayerProbes(
        np.stack([auroc, auroc - 0.05, np.minimum(auroc + 0.04, 1)], axis=1), random.uniform(0.4, 0.6, (199, n)),
        np.where(auroc > 0.8, 0.005, 0.4), auroc - excess, np.stack([excess, excess - 0.03, excess + 0.03], axis=1),
        np.zeros((n, pairs)),
    )  # fmt: skip
    safe, unsafe = random.normal(-3, 0.5, pairs), random.normal(3, 0.5, pairs)
    gap = unsafe - safe
    shares = {LAST: rise, DIFFERING: 1 - rise, ATTENTION: 0.05 + 0 * rise[1:], MLP: 0.1 * rise[1:]}
    shares = {kind: one[:, None] + random.normal(0, 0.03, (len(one), pairs)) for kind, one in shares.items()}
    patching = LayerPatching(
        safe, unsafe, {kind: safe + one * gap for kind, one in shares.items()},
        {kind: unsafe - one * gap for kind, one in shares.items()},
    )  # fmt: skip
    return comparison_page("epoch_1_circuit_comparison.html", "Epoch 1", probes, patching, FROZEN)


def neurons(random: np.random.Generator) -> FigurePage:
    auroc = random.uniform(0.3, 0.7, (LAYERS, NEURONS))
    told = random.random(auroc.shape) < np.linspace(0, 4e-3, LAYERS)[:, None]
    auroc = np.where(told, random.choice([0.03, 0.97], auroc.shape) + random.normal(0, 0.01, auroc.shape), auroc)
    low = np.where(told, 1e-9, 1.0)
    table = NeuronTable(auroc, low, np.stack([auroc, auroc]), told, np.abs(auroc - 0.5), low, auroc)
    modes: list[tuple[Mode, float]] = [("mean", 1.5), ("resample", 1.2)]
    ablations = [Ablation(mode, 6.0, drop, random.normal(0.1, 0.1, 19)) for mode, drop in modes]
    return neuron_page("epoch_1_neuron_map.html", "Epoch 1", table, table.top(12), ablations, FROZEN)


def circuits(random: np.random.Generator) -> FigurePage:
    graph = Graph(LAYERS, HEADS, KV_HEADS)
    possible = [
        (place, writer)
        for place, reader in enumerate(graph.readers)
        for writer, one in enumerate(graph.writers)
        if one.kind == "embed" or one.layer < reader.layer
    ]
    ranked = [possible[at] for at in random.choice(len(possible), 128, replace=False)]
    exact = np.sort(random.exponential(0.3, 128))[::-1] * random.choice([-1, 1], 128)
    sizes = (16, 32, 64, 96, 128)
    faithful = CircuitFaithfulness(sizes, np.array([0.2, 0.4, 0.6, 0.7, 0.75]), random.uniform(0, 0.1, (5, 19)))
    nodes = np.where(random.random(len(graph.writers)) < 0.5, random.normal(0, 0.5, len(graph.writers)), np.nan)
    view = CircuitView(ranked, 64, exact, exact + random.normal(0, 0.05, 128), faithful, 6.0, nodes, 8)
    return circuit_page("epoch_1_circuits.html", "Epoch 1", graph, view, 24, ("epoch 0", CircuitChange(0.8, 0.1, 0.95)))
