"""What the causal pictures of a watched judge cost, and what edge attribution is worth beside exact patching.

    uv run python benchmarks/advanced_pictures.py
    uv run python benchmarks/advanced_pictures.py --epochs 3 --output outputs/benchmarks

Trains the judge of the judge world on the organism that is built for it, watched at every epoch with all pictures, and
holds circuit comparison, neuron map and circuits against the larger of 50% of an epoch and 15 s. The judge that comes
out is then asked for the effect of every edge: estimated from gradients at one point, at five evenly spread points and
at the turns of the margin, and measured by patching each edge alone. Prints tables and writes
results/benchmarks/advanced_pictures.json.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr

from benchmarks.reports import REPORTS, write_report
from src.utils.circuits.attribution import (
    ALONG_THE_WAY,
    edge_attributions,
    edge_attributions_at_turns,
    exact_edge_effects,
    strongest_edges,
)
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.faithfulness import circuit_faithfulness
from src.utils.circuits.graph import Graph
from src.utils.config import resolve_path
from src.utils.manifests import Provenance
from src.utils.models import load_model, load_tokenizer
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.organism import open_organism
from src.utils.safety_judge.samples import labels
from src.utils.safety_judge.scoring import JudgeTemplate, encode
from src.utils.safety_judge.settings import load_judge_config
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from src.utils.safety_judge.world import load_judge_world, world_data
from src.utils.sites import AnyModel
from src.utils.watching.callback import COSTLY_SECONDS, COSTLY_SHARE
from src.utils.watching.safety_watcher import SafetyWatcher

PAIRS, TOP = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--train-prompts", type=int, default=None, help="all when not given")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    torch.set_num_threads(1)  # as the training does for a model this small
    config, data = load_judge_config("organism", {}), world_data(load_judge_world())
    asked, length = config.judging, config.training.max_length
    base = open_organism(resolve_path(config.model.base), asked.question, (asked.safe_word, asked.unsafe_word))
    tokenizer = load_tokenizer(str(base))
    template = JudgeTemplate.of(tokenizer, asked.question, asked.safe_word, asked.unsafe_word)
    model = load_model(str(base), config.model.model_copy(update={"dtype": "float32"}))
    freeze(model, config.training.freeze_layers)

    def encoded(samples: Any) -> LabelledPrompts:
        return LabelledPrompts(encode(tokenizer, template, [one.prompt for one in samples], length), labels(samples))

    train = data.train[: options.train_prompts]
    with tempfile.TemporaryDirectory() as folder:
        watcher = SafetyWatcher(
            tokenizer, template, data.validation, Path(folder), max_length=length, interval=1, run_advanced=True,
            provenance=Provenance(step="benchmark", profile="organism"),
            command="uv run python benchmarks/advanced_pictures.py",
        )  # fmt: skip
        settings = config.training.model_copy(update={"num_epochs": options.epochs, "keep": "last"})
        train_judge(
            model, template, encoded(train), encoded(data.validation), settings, config.evaluation,
            Path(folder) / "work", [watcher],
        )  # fmt: skip
    report = {
        "train_prompts": len(train),
        "epochs": [costs_of(watcher, number) for number in watcher.records if number],
        "edges": edges_of(model.eval(), ContrastSet.of_judge(watcher.probes, template)),
    }
    print(cost_table(report["epochs"]))
    print(edge_table(report["edges"]))
    print(write_report(report, options.output, "advanced_pictures"))


def costs_of(watcher: SafetyWatcher, number: int) -> dict[str, Any]:
    """Seconds of the costly pictures at one epoch beside what they may take."""
    record = watcher.records[number]
    costly = {picture.name for picture in watcher.pictures if picture.relative_budget > 1}
    own = [picture for picture in record.pictures if picture.name in costly]
    return {
        "epoch": number,
        "training_seconds": record.training_seconds,
        "seconds": {picture.name: picture.seconds for picture in own},
        "raised_gb": max(picture.memory_raised_bytes for picture in own) / 1e9,
        "notes": [f"{picture.name}: {told}" for picture in own if (told := picture.failure or picture.sub_sampled)],
        "allowed_seconds": max(COSTLY_SHARE * record.training_seconds, COSTLY_SECONDS),
    }


def edges_of(model: AnyModel, contrast: ContrastSet) -> dict[str, Any]:
    """Every edge's effect on some pairs: seconds, rank correlation with exact patching, faithfulness on other pairs."""
    graph, margin_of = Graph.of(model), contrast.margin(model)
    pairs, others = contrast.pairs.part(slice(0, PAIRS)), contrast.pairs.part(slice(PAIRS, 2 * PAIRS))
    every = [(int(reader), int(writer)) for reader, writer in np.argwhere(graph.edges)]
    began = time.perf_counter()
    exact = exact_edge_effects(model, margin_of, graph, pairs, every).mean(axis=1)
    exact_seconds = time.perf_counter() - began
    methods: dict[str, Callable[[], Float[np.ndarray, "pairs readers writers"]]] = {
        "gradient at the safe prompt": lambda: edge_attributions(model, margin_of, graph, pairs),
        "five evenly spread": lambda: edge_attributions(model, margin_of, graph, pairs, ALONG_THE_WAY),
        "at the margin's turns": lambda: edge_attributions_at_turns(model, margin_of, graph, pairs),
    }
    rows: dict[str, Any] = {"exact": {"seconds": exact_seconds}}
    grids = {"exact": exact}
    for name, method in methods.items():
        began = time.perf_counter()
        grids[name] = method().mean(axis=0)[tuple(np.array(every).T)]
        rows[name] = {"seconds": time.perf_counter() - began}
    strongest = np.argsort(-np.abs(exact))[:TOP]
    for name, effects in grids.items():
        grid = np.zeros(graph.edges.shape)
        grid[tuple(np.array(every).T)] = effects
        ranked = strongest_edges(grid, graph, TOP)
        kept = circuit_faithfulness(model, margin_of, graph, others, ranked, (min(TOP, len(ranked)),), draws=0)
        rows[name] |= {
            "rank_correlation": float(spearmanr(effects, exact).statistic),
            "rank_correlation_strongest": float(spearmanr(effects[strongest], exact[strongest]).statistic),
            "times_faster": exact_seconds / rows[name]["seconds"],
            "faithfulness": float(kept.found[0]),
        }
    return {"edges": len(every), "pairs": len(pairs), "top": TOP, "methods": rows}


def cost_table(epochs: list[dict[str, Any]]) -> str:
    names = [*epochs[0]["seconds"]]
    rows = [("epoch", "training s", *names, "together", "allowed")]
    for one in epochs:
        seconds = [one["seconds"][name] for name in names]
        cells = (one["training_seconds"], *seconds, sum(seconds), one["allowed_seconds"])
        rows.append((str(one["epoch"]), *(f"{cell:.1f}" for cell in cells)))
    over = sum(sum(one["seconds"].values()) > one["allowed_seconds"] for one in epochs)
    lines = ["  ".join(cell.rjust(max(10, len(name))) for cell, name in zip(row, rows[0], strict=True)) for row in rows]
    cut = [f"epoch {one['epoch']}: {note}" for one in epochs for note in one["notes"]]
    return "\n".join([*lines, f"{over} of {len(epochs)} epochs over what is allowed", *cut])


def edge_table(report: dict[str, Any]) -> str:
    rows = [("method", "s", "times faster", "rank correlation", f"of the {report['top']} strongest", "gap kept")]
    for name, one in report["methods"].items():
        rows.append((
            name, f"{one['seconds']:.2f}", f"{one['times_faster']:.0f}", f"{one['rank_correlation']:.2f}",
            f"{one['rank_correlation_strongest']:.2f}", f"{one['faithfulness']:.0%}",
        ))  # fmt: skip
    lines = ["  ".join(cell.ljust(28) if not at else cell.rjust(20) for at, cell in enumerate(row)) for row in rows]
    return "\n".join([f"{report['edges']} edges on {report['pairs']} pairs; gap kept by the top on others", *lines])


if __name__ == "__main__":
    main()
