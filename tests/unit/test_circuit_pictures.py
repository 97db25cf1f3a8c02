"""The three causal pictures: what is planted is said, what is not there is not, and a watched training is the same."""

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from src.utils.circuits import contrast as contrast_module
from src.utils.circuits.circuit_picture import CircuitDiagramPicture, attribute_within, circuit_picture
from src.utils.circuits.comparison_picture import CircuitComparisonPicture, comparison_picture, patching_of
from src.utils.circuits.contrast import Margin, contrast_pairs
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.faithfulness import CircuitFaithfulness, circuit_faithfulness
from src.utils.circuits.graph import Graph
from src.utils.circuits.neuron_picture import NeuronMapPicture, neuron_picture
from src.utils.circuits.patching import MLP
from src.utils.circuits.runs import BatchedRuns, GraphRun
from src.utils.safety_judge.samples import labels
from src.utils.watching.epoch_metrics import load_history
from src.utils.watching.pictures import Budget, Measurement, Moment, Picture
from src.visualizations.circuit_diagram import CircuitView, circuit_page, node_places, node_points
from src.visualizations.circuit_figures import comparison_page
from src.visualizations.circuit_neurons import neuron_page
from src.visualizations.figure_page import page_html
from src.visualizations.palette import LABEL_COLOURS, TEXT_COLOUR
from tests.planted_circuit import (
    COPY,
    HEAD,
    N_LAYERS,
    N_NEURONS,
    NEURON,
    PAD,
    READ,
    answer_of,
    planted_data,
    planted_model,
)
from tests.watched_training import N_FROZEN, judge_model, judge_template, trained_judge, watcher

PLENTY = 600.0
MAKERS = (comparison_picture, neuron_picture, circuit_picture)
PICTURES = (CircuitComparisonPicture, NeuronMapPicture, CircuitDiagramPicture)


def planted_set(count: int = 20, shuffle_seed: int | None = None) -> ContrastSet:
    """Pairs of the planted circuit; with a seed, the labels of each pair are exchanged by a coin."""
    samples, rows = planted_data(count)
    if shuffle_seed is not None:
        flips = dict(zip(range(count), np.random.default_rng(shuffle_seed).random(count) < 0.5, strict=True))
        samples = [replace(one, unsafe=one.unsafe ^ bool(flips[at // 2])) for at, one in enumerate(samples)]
    groups = np.array([sample.group for sample in samples])
    pairs = contrast_pairs(samples, rows, PAD)
    return ContrastSet(tuple(rows), labels(samples), groups, pairs, PAD, answer_of())


def measured(picture: Picture, model: PreTrainedModel, number: int = 1, seconds: float = PLENTY) -> Measurement:
    with torch.no_grad():
        return picture.measure(Moment("epoch", number, 10 * number, model), Budget(seconds), None)


def page_of(picture: Picture, found: Measurement, number: int = 1) -> Any:
    (page,) = picture.draw(number, {number: found})
    assert [page.file_name] == picture.file_names(number)
    assert page_html(page) == page_html(picture.draw(number, {number: found})[0])
    return page


def test_the_planted_circuit_is_what_the_pages_say() -> None:
    model, contrast = planted_model(), planted_set()
    comparison = CircuitComparisonPicture(contrast)
    found = measured(comparison, model)
    assert found.facts["divergence"] == [COPY + 1] * 3 and found.facts["learned_layers"] == [COPY + 1, READ + 1]
    assert f"Divergence layer: {COPY + 1}, " in page_of(comparison, found).sentence
    neurons = NeuronMapPicture(contrast)
    found = measured(neurons, model)
    assert found.facts["top"] == [[READ, NEURON]] and found.sub_sampled is None
    counts = [found.facts[name] for name in ("neurons", "corrected", "replicated", "claimed", "claimed_by_block")]
    assert counts == [N_LAYERS * N_NEURONS, 1, 1, 1, [0, 0, 1]]
    assert page_of(neurons, found).sentence.startswith("One neuron tells the classes apart")
    diagram = CircuitDiagramPicture(contrast)
    found = measured(diagram, model)
    page = page_of(diagram, found)
    graph = Graph.of(model)
    names = [f"{graph.writers[writer].name}>{graph.readers[reader].name}" for reader, writer in found.values["ranked"]]
    assert set(names[:3]) == {f"embeddings>L{COPY}KV1.v", f"L{COPY}H{HEAD}>MLP{READ}", f"MLP{READ}>logits"}
    np.testing.assert_allclose(found.values["exact"][:3], float(str(found.facts["measured_gap"])), rtol=1e-4)
    named = dict(zip((one.name for one in graph.writers), found.values["nodes"].tolist(), strict=True))
    for name in ("embeddings", f"L{COPY}H{HEAD}", f"MLP{READ}"):
        assert named[name] == pytest.approx(float(str(found.facts["measured_gap"])), rel=1e-4)
    assert "keep 100% of the gap" in page.figure.layout.title.text


@pytest.mark.parametrize("seed", range(3))
def test_under_shuffled_labels_the_pages_are_silent(seed: int) -> None:
    model, contrast = planted_model(), planted_set(shuffle_seed=seed)
    for kind, silence in zip(PICTURES, ("none found", "Safety neurons: none found", "none found"), strict=True):
        picture = kind(contrast)
        found = measured(picture, model)
        page = page_of(picture, found)
        assert silence in page.sentence + page.figure.layout.title.text
        for note in page.figure.layout.annotations:
            if "domain" in (note.xref or ""):  # without a trace plotly puts it into another panel
                assert any(f"{trace.xaxis or 'x'} domain" == note.xref for trace in page.figure.data)
                axis = page.figure.layout["xaxis" + note.xref.split()[0][1:]]
                assert axis.showticklabels is False or axis.visible is False
        assert "Orange edges" not in page.sentence
        for claim in ("learned_layers", "divergence", "top", "has_gap"):
            assert not found.facts.get(claim)


def test_pages_say_nothing_of_before_training_where_it_is_not_known() -> None:
    model, contrast = planted_model(), planted_set()
    for kind in (CircuitComparisonPicture, NeuronMapPicture):
        picture = kind(contrast)
        page = page_of(picture, measured(picture, model))
        assert "before training" not in page.sentence + page.figure.layout.title.text
        before = picture.measure(Moment("epoch", 0, 0, model), Budget(PLENTY), None)
        found = picture.measure(Moment("epoch", 1, 1, model), Budget(PLENTY), before)
        assert "before training" in page_of(picture, found).sentence


def test_where_memory_holds_one_pair_at_a_time_as_many_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model, diagram = planted_model(), CircuitDiagramPicture(planted_set())
    at_once = measured(diagram, model)
    monkeypatch.setattr(contrast_module, "NUMBERS_AT_ONCE", 1)
    one_by_one = measured(diagram, model)
    assert at_once.facts["measured_pairs"] == one_by_one.facts["measured_pairs"] == 8
    for name in ("exact", "nodes", "faithful", "random"):
        np.testing.assert_allclose(one_by_one.values[name], at_once.values[name], rtol=1e-4, atol=1e-5)
    title = page_of(diagram, one_by_one).figure.layout.title.text
    assert "logits, mean of 8 pairs;" in " ".join(title.split("<br>"))


def test_a_share_far_over_the_gap_is_on_the_page() -> None:
    picture = CircuitComparisonPicture(planted_set())
    patching = patching_of(measured(picture, planted_model()).values)
    assert patching is not None
    far = replace(
        patching,
        denoised=dict(patching.denoised)
        | {MLP: patching.safe + 3 * (patching.unsafe - patching.safe) * np.ones((N_LAYERS, 1))},
    )
    layout = comparison_page("epoch_1_circuit_comparison.html", "Epoch 1", None, far, 0).figure.layout
    assert layout.yaxis4.range[0] == -25 and layout.yaxis4.range[1] > 300


def test_without_pairs_there_is_a_page_that_says_so() -> None:
    samples, rows = planted_data(3)
    alone = [replace(sample, pair_id=None) for sample in samples]
    contrast = replace(planted_set(3), pairs=contrast_pairs(alone, rows, PAD))
    for kind in PICTURES:
        picture = kind(contrast)
        page = page_of(picture, measured(picture, planted_model()))
        assert "none found" in page.sentence + page.figure.layout.title.text
        assert made_up_axes(page.figure) == []


def test_pages_without_any_measurement_make_no_axes_up() -> None:
    """Plotly numbers an empty panel from -1 to 6, and a line on it looks like a finding."""
    pages = [
        comparison_page("epoch_1_circuit_comparison.html", "Epoch 1", None, None, N_FROZEN + 1),
        neuron_page("epoch_1_neuron_map.html", "Epoch 1", None, [], [], N_FROZEN + 1),
        circuit_page("epoch_1_circuits.html", "Epoch 1", Graph(4, 8, 2), None, 0, None),
    ]
    for page in pages:
        assert made_up_axes(page.figure) == []
        assert not [shape for shape in page.figure.layout.shapes if shape.x0 == shape.x1], "no boundary without layers"


def made_up_axes(figure: Any) -> list[str]:
    """The axes that nothing is drawn on and that plotly would number as it likes."""
    named = {f"{letter}axis{(trace[f'{letter}axis'] or letter)[1:]}" for trace in figure.data for letter in "xy"
             if any(value is not None for value in trace.x)}  # fmt: skip
    axes = {name: figure.layout[name] for name in figure.layout if name[1:].startswith("axis")}
    return [
        name
        for name, axis in axes.items()
        if name not in named and axis.range is None and axis.type != "category"
        and axis.showticklabels is not False and axis.visible is not False
    ]  # fmt: skip


def test_a_small_budget_cuts_and_says_what() -> None:
    contrast = planted_set()
    assert "4 of 20 pairs" in str(measured(CircuitComparisonPicture(contrast), planted_model(), seconds=0).sub_sampled)
    assert "1 of 19 random sets" in str(measured(NeuronMapPicture(contrast), planted_model(), seconds=0).sub_sampled)
    found = measured(CircuitDiagramPicture(contrast), planted_model(), seconds=0)
    assert "1 of 19 random circuits" in str(found.sub_sampled)
    assert re.search(r" 1 of \d+ nodes measured, others hollow", str(found.sub_sampled))
    assert np.isfinite(found.values["nodes"]).sum() == 1
    page = page_of(CircuitDiagramPicture(contrast), found)
    assert "Circuit: not decided" in page.figure.layout.title.text, "one random circuit proves nothing"


def test_batches_go_on_to_the_least_number_and_then_as_the_budget_holds() -> None:
    assert [(one.start, one.stop) for one in Budget(0).slices(20, least=4, most=3)] == [(0, 3), (3, 4)]
    assert [(one.start, one.stop) for one in Budget(PLENTY).slices(20, least=4, most=12)] == [(0, 4), (4, 12), (12, 20)]
    assert list(Budget(PLENTY).slices(0, least=4, most=3)) == []


def test_nodes_keep_their_places_and_no_two_share_one() -> None:
    places = node_places(Graph(4, 8, 2))
    assert len(set(places.values())) == len(places) == 2 + 4 * (8 + 2 + 1)
    larger = node_places(Graph(6, 8, 2))
    assert all(larger[name] == place for name, place in places.items() if name != "logits")


def test_a_watched_training_is_the_same_and_frozen_neurons_learn_nothing(tmp_path: Path) -> None:
    watching = watcher(tmp_path, interval=1)
    made: list[Picture] = [make(watching.probes, judge_template()) for make in MAKERS]
    watching.pictures = made
    watching.measured = {picture.name: {} for picture in made}
    alone = trained_judge(judge_model(), tmp_path / "alone", count=24)
    watched = trained_judge(judge_model(), tmp_path / "watched", [watching], count=24)
    for (name, one), (_, other) in zip(alone.named_parameters(), watched.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    records = load_history(watching.pages.folder, "epoch")
    assert [record.number for record in records] == [0, 1, 2]
    for record in records:
        assert [picture.failure for picture in record.pictures] == [None] * 3
    for kind in ("circuit_comparison", "neuron_map", "circuits"):
        assert (watching.pages.folder / f"epoch_2_{kind}.html").stat().st_size < 3e5
    excess = watching.measured["neuron_map"][2].values.get("table/excess")
    if excess is not None:
        assert (excess[:N_FROZEN] == 0).all() and (excess[N_FROZEN:] != 0).any()
    learned: Any = watching.measured["circuit_comparison"][2].values["probe/excess"]
    assert (learned[: N_FROZEN + 1] == 0).all(), "embeddings and frozen blocks have learned exactly nothing"


def test_the_size_is_chosen_on_other_pairs_and_not_by_what_is_measured() -> None:
    """Of two sizes the second would pass on the measured pairs, but the first was chosen."""
    graph = Graph(2, 2, 1)
    ranked = [(0, 0)] * 32
    faithful = CircuitFaithfulness((16, 32), np.array([0.1, 0.9]), np.stack([np.full(19, 0.2), np.zeros(19)]))
    rows = np.ones(32)
    view = CircuitView(ranked, 16, rows, rows, faithful, 1.0, np.full(len(graph.writers), np.nan), 8)
    assert view.is_decided and view.drawn_size is None
    assert replace(view, chosen=32).drawn_size == 32
    assert not replace(view, chosen=32, exact=rows[:16]).is_decided, "not all of its edges are measured"


def test_a_node_that_was_not_measured_is_hollow_and_one_that_only_reads_is_black() -> None:
    graph = Graph(2, 2, 1)
    edges = [("embeddings", "MLP0"), ("MLP0", "L1H0"), ("L0H1", "MLP0")]
    nodes = np.array([1.0 if writer.name == "MLP0" else np.nan for writer in graph.writers])
    faithful = CircuitFaithfulness((1,), np.ones(1), np.zeros((1, 19)))
    view = CircuitView([(0, 0)], 1, np.ones(1), np.ones(1), faithful, 1.0, nodes, 8)
    points = node_points(graph, edges, node_places(graph), view)
    colours = {
        text.split(":")[0]: colour for text, colour in zip(points["hovertext"], points["marker"]["color"], strict=True)
    }
    assert (colours["embeddings"], colours["L0H1"], colours["L1H0"]) == ("white", "white", TEXT_COLOUR)
    assert colours["MLP0"] == LABEL_COLOURS["unsafe"] and "L0H1: not measured" in points["hovertext"]


def test_of_what_is_done_batch_by_batch_the_runs_of_one_batch_stay_in_memory() -> None:
    contrast = planted_set()
    alive: list[int] = []

    def read(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        alive.append(sum(type(one) is GraphRun for one in gc.get_objects()))
        return contrast.read(logits, ids, mask)

    model = planted_model()
    graph, margin = Graph.of(model), Margin(model, read)
    attribute_within(margin, graph, contrast.pairs, Budget(PLENTY))
    assert len(alive) == 3 * (2 + 7)  # three batches, of both runs and seven gradients
    assert max(alive) == 2
    alive.clear()
    edges = list(zip(*np.nonzero(graph.edges), strict=True))[:2]
    circuit_faithfulness(BatchedRuns(margin, graph, contrast.pairs.part(slice(6)), 2), edges, (1, 2), draws=0)
    assert len(alive) == 3 * (2 + 2) and max(alive) == 2  # three batches, of both runs and two circuits
