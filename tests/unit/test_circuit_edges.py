"""Edges and circuits: TransformerLens's numbers without grouped queries, brute force with them, a planted circuit."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
)

from src.utils.circuits.attribution import (
    edge_attributions,
    exact_edge_effects,
    exact_node_effects,
    only,
    strongest_edges,
)
from src.utils.circuits.contrast import ContrastPairs, contrast_pairs
from src.utils.circuits.faithfulness import (
    CircuitFaithfulness,
    circuit_change,
    circuit_faithfulness,
    mean_patterns,
    random_circuit,
)
from src.utils.circuits.graph import Graph, Reader, ReaderKind, Writer
from src.utils.circuits.runs import BatchedRuns, PairRuns, linear_map, run_with_replaced
from src.utils.errors import UserError
from src.utils.sites import Site, edit_sites
from tests.planted_circuit import (
    COPY,
    HEAD,
    N_HEADS,
    N_KV_HEADS,
    PAD,
    READ,
    answer_margin,
    planted_data,
    planted_model,
    random_pairs,
)
from tests.tiny_models import save_model, tiny_gemma, tiny_model, tiny_with_norms_after, tokenizer, with_adapter


def double(model: PreTrainedModel) -> PreTrainedModel:
    """In 64 bits throughout: the library's norms compute in 32, too coarse for slopes. Their gains become random."""
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            width = module.get_parameter("weight").shape[0]
            exact = torch.nn.RMSNorm(width, eps=model.config.rms_norm_eps)
            torch.nn.init.uniform_(exact.weight, 0.5, 2.0)
            model.set_submodule(name, exact)
    return model.double()


def edge(graph: Graph, reader: Reader, writer: Writer) -> tuple[int, int]:
    return graph.readers.index(reader), graph.writers.index(writer)


def test_the_graph_names_every_edge_once() -> None:
    graph = Graph(n_layers=2, n_heads=4, n_kv_heads=2)
    assert [writer.name for writer in graph.writers][:6] == ["embeddings", "L0H0", "L0H1", "L0H2", "L0H3", "MLP0"]
    assert len(graph.writers) == 11 and len(graph.readers) == 2 * (4 + 2 + 2 + 1) + 1
    for kind, layer in (("q", 1), ("k", 0), ("v", 1), ("mlp", 0)):
        assert all((one.kind, one.layer) == (kind, layer) for one in graph.readers[graph.group(kind, layer)])
    assert graph.readers[graph.group("logits", 2)] == [Reader("logits", 2)]
    for row, reader in enumerate(graph.readers):
        for column, writer in enumerate(graph.writers):
            before = writer.kind == "embed" or writer.layer < reader.layer
            same_block = writer.kind == "head" and reader.kind == "mlp" and writer.layer == reader.layer
            assert graph.edges[row, column] == (before or same_block), (reader, writer)


def test_writers_sum_to_the_residual_stream_and_replacing_nothing_changes_nothing() -> None:
    model, pairs = tiny_model(), random_pairs(2, 5)
    graph, margin_of = Graph.of(model), answer_margin(model)
    runs = PairRuns.of(margin_of, graph, pairs)
    with torch.no_grad():
        states = model(pairs.safe, output_hidden_states=True).hidden_states
    written = runs.safe.written
    own = states[2][:, -written.shape[2] :]
    torch.testing.assert_close(written[: graph.upstream("q", 2)].sum(dim=0), own, rtol=1e-4, atol=1e-4)
    every = run_with_replaced(runs, runs.safe, graph.edges, written)
    torch.testing.assert_close(every, margin_of(pairs.safe, pairs.mask).detach(), rtol=1e-4, atol=1e-5)
    all_replaced = run_with_replaced(runs, runs.safe, graph.edges, runs.unsafe.written)
    torch.testing.assert_close(all_replaced, margin_of(pairs.unsafe, pairs.mask).detach(), rtol=1e-4, atol=1e-5)


def test_the_planted_circuit_is_found_with_its_exact_effects_and_nothing_else() -> None:
    model = planted_model()
    graph, margin_of = Graph.of(model), answer_margin(model)
    pairs = contrast_pairs(*planted_data(8), PAD)
    kv_head = HEAD // (N_HEADS // N_KV_HEADS)
    circuit = [
        edge(graph, Reader("v", COPY, kv_head), Writer("embed")),
        edge(graph, Reader("mlp", READ), Writer("head", COPY, HEAD)),
        edge(graph, Reader("logits", 3), Writer("mlp", READ)),
    ]
    gaps = (margin_of(pairs.unsafe, pairs.mask) - margin_of(pairs.safe, pairs.mask)).detach().numpy()
    every = [(int(row), int(column)) for row, column in np.argwhere(graph.edges)]
    effects = exact_edge_effects(PairRuns.of(margin_of, graph, pairs), every)
    for (row, column), effect in zip(every, effects, strict=True):
        np.testing.assert_allclose(effect, gaps if (row, column) in circuit else 0, atol=1e-4)
    attributions = edge_attributions(PairRuns.of(margin_of, graph, pairs))
    assert set(strongest_edges(attributions.mean(axis=0), graph, 3)) == set(circuit)
    nodes = [graph.writers.index(one) for one in (Writer("head", COPY, HEAD), Writer("mlp", READ), Writer("mlp", 0))]
    measured = exact_node_effects(PairRuns.of(margin_of, graph, pairs), nodes)
    for found, expected in zip(measured, (gaps, gaps, 0 * gaps), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    others = [one for one in every if one not in circuit]
    found = circuit_faithfulness(BatchedRuns(margin_of, graph, pairs, 8), [*circuit, *others], sizes=(2, 3), draws=19)
    np.testing.assert_allclose(found.found, [0, 1], atol=1e-4)
    assert found.random[1].max() < 0.01 and found.p[1] == pytest.approx(0.05)


def test_an_edges_effect_on_grouped_queries_is_brute_forces() -> None:
    """One slice of a projection, recomputed from the weights with a head's output exchanged, all else untouched."""
    model, pairs = double(tiny_model()), random_pairs(3, 6)
    graph, margin_of = Graph.of(model), answer_margin(model)
    assert graph.n_kv_heads < graph.n_heads
    config, writer = model.config, Writer("head", 0, 1)
    d_head = config.hidden_size // config.num_attention_heads
    own = slice(writer.head * d_head, (writer.head + 1) * d_head)
    output_weight = model.get_parameter("model.layers.0.self_attn.o_proj.weight").detach()[:, own]
    kept: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, ids in (("safe", pairs.safe), ("unsafe", pairs.unsafe)):
            with edit_sites(
                model.get_decoder(),
                {
                    Site("attn.z", 0): lambda z, name=name: kept.update({f"{name}_z": z[..., own].clone()}),
                    Site("resid_pre", 2): lambda x, name=name: kept.update({f"{name}_stream": x.clone()}),
                },
            ):
                kept[name] = margin_of(ids, pairs.mask)
        seen = kept["safe_stream"] + (kept["unsafe_z"] - kept["safe_z"]) @ output_weight.T
        gain = model.get_parameter("model.layers.2.input_layernorm.weight")
        normed = seen / (seen.pow(2).mean(dim=-1, keepdim=True) + config.rms_norm_eps).sqrt() * gain
        for kind, head in (("q", 3), ("k", 1), ("v", 0)):
            projection = model.get_submodule(f"model.layers.2.self_attn.{kind}_proj")
            rows = slice(head * d_head, (head + 1) * d_head)
            value = normed @ model.get_parameter(f"model.layers.2.self_attn.{kind}_proj.weight")[rows].T

            def exchange(module, args, output, rows=rows, value=value):
                return torch.cat([output[..., : rows.start], value, output[..., rows.stop :]], dim=-1)

            handle = projection.register_forward_hook(exchange)
            expected = (margin_of(pairs.safe, pairs.mask) - kept["safe"]).numpy()
            handle.remove()
            at = edge(graph, Reader(kind, 2, head), writer)
            found = exact_edge_effects(PairRuns.of(margin_of, graph, pairs), [at])[0]
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
            assert np.abs(expected).max() > 1e-4


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
def test_attribution_is_the_slope_of_the_exact_effect_on_grouped_queries(adapted: bool) -> None:
    model, pairs = double(tiny_model()), random_pairs(2, 5)
    if adapted:
        model = with_adapter(model).double()
    model.requires_grad_(False)
    graph, margin_of = Graph.of(model), answer_margin(model)
    runs = PairRuns.of(margin_of, graph, pairs)
    found = edge_attributions(runs)
    of_safe, moved = runs.safe.written, runs.unsafe.written - runs.safe.written
    small, rng = 1e-5, np.random.default_rng(0)
    chosen = np.argwhere(graph.edges)
    for row, column in chosen[rng.choice(len(chosen), 16, replace=False)]:
        mask = only(graph, [(row, column)])
        ends = [run_with_replaced(runs, runs.safe, mask, of_safe + step * moved) for step in (-small, small)]
        slope = ((ends[1] - ends[0]) / (2 * small)).numpy()
        np.testing.assert_allclose(found[:, row, column], slope, rtol=2e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_along_the_way_end_at_the_unsafe_prompt() -> None:
    """At point 1 the gradient is the unsafe run's: the attribution of the exchanged pairs, turned round."""
    model, pairs = double(tiny_model()), random_pairs(2, 5)
    graph, margin_of = Graph.of(model), answer_margin(model)
    exchanged = ContrastPairs(pairs.unsafe, pairs.safe, pairs.mask, pairs.pair_ids)
    start, end = (edge_attributions(PairRuns.of(margin_of, graph, pairs), (point,)) for point in (0.0, 1.0))
    np.testing.assert_allclose(end, -edge_attributions(PairRuns.of(margin_of, graph, exchanged)), rtol=1e-5, atol=1e-7)
    both = edge_attributions(PairRuns.of(margin_of, graph, pairs), (0.0, 1.0))
    np.testing.assert_allclose(both, (start + end) / 2, rtol=1e-5, atol=1e-7)
    assert np.abs(start - end).max() > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_without_grouped_queries_edges_and_faithfulness_are_transformer_lenss(tmp_path: Path) -> None:
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    from transformer_lens.tools.analysis import attribution_patching as theirs

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()), hidden_size=16, intermediate_size=24, num_hidden_layers=2, head_dim=4,
            num_attention_heads=4, num_key_value_heads=4, initializer_range=0.3, tie_word_embeddings=False,
            bos_token_id=None, pad_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    pairs = random_pairs(1, 4)
    graph, margin_of = Graph.of(model), answer_margin(model)
    found = edge_attributions(PairRuns.of(margin_of, graph, pairs))[0]
    bridge = bridges.TransformerBridge.boot_transformers(
        str(save_model(model, tmp_path)), device="cpu", dtype=torch.float32
    ).eval()

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 5] - logits[0, -1, 4]

    config = theirs.EdgeAttributionConfig(granularity="edge")
    result = theirs.attribution_patch(bridge, pairs.unsafe, pairs.safe, metric, config)
    kinds: dict[str, ReaderKind] = {"q_input": "q", "k_input": "k", "v_input": "v", "mlp_in": "mlp"}
    names: dict[str, Literal["embed", "head", "mlp"]] = {"embed": "embed", "attn_head_out": "head", "mlp_out": "mlp"}

    def place(writer: theirs.Node, reader: theirs.Node) -> tuple[int, int]:
        ours = Writer(names[writer.kind], writer.layer or 0, writer.head or 0)
        if reader.kind == "logits":
            return edge(graph, Reader("logits", graph.n_layers), ours)
        return edge(graph, Reader(kinds[reader.kind], reader.layer or 0, reader.head or 0), ours)

    expected = np.zeros_like(found)
    for (writer, reader), score in result.edge_scores.items():
        expected[place(writer, reader)] += score
    assert np.count_nonzero(expected) > 50
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    ranked = strongest_edges(found, graph, 20)
    kept = [pair for pair in result.edge_scores if place(*pair) in ranked]
    share = theirs.faithfulness(bridge, pairs.unsafe, pairs.safe, metric, kept).recovered
    ours = circuit_faithfulness(BatchedRuns(margin_of, graph, pairs, 8), ranked, sizes=(20, 500), draws=1)
    assert ours.sizes == (20,) and ours.found[0] == pytest.approx(share, rel=1e-3)


def test_random_circuits_that_were_not_measured_count_for_nothing() -> None:
    found = CircuitFaithfulness((2, 4), np.array([0.5, 0.9]), np.zeros((2, 0)))
    assert found.p.tolist() == [1, 1]
    more = found.with_random(CircuitFaithfulness((4,), np.array([0.9]), np.array([[0.1, 0.95, 0.2]])))
    assert more.drawn.tolist() == [0, 3] and more.p.tolist() == [1, 0.5]


def test_random_circuits_are_of_the_same_make() -> None:
    graph = Graph(n_layers=3, n_heads=4, n_kv_heads=2)
    like = only(graph, [(0, 0), (graph.group("mlp", 2).start, 3), (len(graph.readers) - 1, 5)])
    for seed in range(10):
        found = random_circuit(graph, like, np.random.default_rng(seed))
        assert not (found & ~graph.edges).any()
        kinds = [graph.readers[row].kind for row, _ in np.argwhere(found)]
        assert sorted(kinds) == ["logits", "mlp", "q"]


def test_change_between_moments_is_told_from_the_noise_of_extraction() -> None:
    rng = np.random.default_rng(0)
    truth, moved = rng.normal(size=(5, 20)), rng.normal(size=(5, 20))

    def extraction(mean: np.ndarray) -> np.ndarray:
        return mean + rng.normal(size=(2, 20, 5, 20)).mean(axis=1)

    same = circuit_change(extraction(truth), extraction(truth))
    other = circuit_change(extraction(truth + moved), extraction(truth))
    assert same is not None and other is not None
    assert same.beyond_noise < 0.2
    variance = 2 / 20  # of a difference of two means of 20 pairs
    assert other.beyond_noise == pytest.approx(1 - variance / (variance + (moved**2).mean()), abs=0.05)
    assert circuit_change(np.zeros((2, 5, 20)), np.zeros((2, 5, 20))) is None


def test_one_pair_with_effects_a_thousand_times_as_large_does_not_decide_the_change() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, 5, 20))
    now, before = (one + 0.5 * rng.normal(size=(32, 5, 20)) for one in truth)
    change = circuit_change(mean_patterns(now), mean_patterns(before))
    now[3] *= 1000
    again = circuit_change(mean_patterns(now), mean_patterns(before))
    assert change is not None and again == change and change.beyond_noise > 0.9
    plain = circuit_change(*(np.stack([one[0::2].mean(axis=0), one[1::2].mean(axis=0)]) for one in (now, before)))
    assert plain is not None and plain.beyond_noise < 0.1, "as the mean of the effects themselves would have it"
    assert not mean_patterns(np.zeros((4, 5, 20))).any()


def test_padding_changes_no_effect() -> None:
    model = tiny_model()
    graph, margin_of = Graph.of(model), answer_margin(model)
    pairs = random_pairs(2, 5)
    padded = ContrastPairs(
        *(torch.nn.functional.pad(one, (0, 3)) for one in (pairs.safe, pairs.unsafe, pairs.mask)), pairs.pair_ids
    )
    found, again = (edge_attributions(PairRuns.of(margin_of, graph, one)) for one in (pairs, padded))
    np.testing.assert_allclose(found, again, rtol=1e-3, atol=1e-5)


def test_models_whose_heads_do_not_add_up_have_no_graph() -> None:
    normalised = (tiny_with_norms_after(family) for family in ("olmo2", "glm4"))
    for model in (tiny_gemma(), tiny_model("granite"), *normalised):
        with pytest.raises(UserError, match="no edges can be drawn"):
            Graph.of(model)


@pytest.mark.parametrize(
    ("kind", "missing"), [(Phi3Config, r"self_attn\.q_proj"), (CohereConfig, "post_attention_layernorm")]
)
def test_models_whose_blocks_are_made_otherwise_have_no_graph_and_say_so(
    kind: type[PretrainedConfig], missing: str
) -> None:
    shape: dict[str, Any] = {
        "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(kind(**shape))
    with pytest.raises(UserError, match=f"have no {missing}; no edges can be drawn"):
        Graph.of(model)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_large_bias_leaves_a_projections_weights_as_they_are_in_bfloat16(adapted: bool) -> None:
    project = torch.nn.Linear(16, 8).to(torch.bfloat16)
    torch.nn.init.constant_(project.bias, 100.0)  # as keys of Qwen2 have
    expected = project.weight.detach().float()
    if adapted:
        host = torch.nn.Sequential(project)
        torch.manual_seed(1)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"], lora_dropout=0.5, init_lora_weights=False)
        adapter = get_peft_model(host, config).eval().get_submodule("base_model.model.0")
        assert isinstance(adapter, Linear)
        expected = expected + adapter.get_delta_weight("default").detach().float()
        weight, bias = linear_map(adapter, torch.zeros(1, 16, dtype=torch.bfloat16))
    else:
        weight, bias = linear_map(project, torch.zeros(1, 16, dtype=torch.bfloat16))
    torch.testing.assert_close(weight.T.float(), expected, rtol=0.02, atol=2e-3)
    torch.testing.assert_close(bias, torch.full((8,), 100.0, dtype=torch.bfloat16))
    assert not weight.requires_grad and project.weight.grad is None
