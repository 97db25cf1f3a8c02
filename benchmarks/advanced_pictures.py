"""What the causal pictures of a watched judge cost, and what edge attribution is worth beside exact patching.

    uv run python benchmarks/advanced_pictures.py
    uv run python benchmarks/advanced_pictures.py --epochs 3 --judges 3 --output outputs/benchmarks

Trains the judge of the judge world on the organism that is built for it, watched at every epoch with all pictures, and
holds circuit comparison, neuron map and circuits against the larger of 50% of an epoch and 15 s. Every epoch of it, and
of other judges that are trained unwatched from other seeds, is then asked for the effect of every edge: estimated from
gradients at the safe prompt, at the unsafe one and at five points between them, and measured by patching each edge
alone (a quarter of a minute an epoch). Prints tables and writes results/benchmarks/advanced_pictures.json.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from transformers import PreTrainedModel, TrainerCallback

from benchmarks.reports import REPORTS, write_report
from src.utils.circuits.attribution import (
    ALONG_THE_WAY,
    edge_attributions,
    exact_edge_effects,
    strongest_edges,
)
from src.utils.circuits.contrast import FAIR_SAMPLE
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.faithfulness import circuit_faithfulness
from src.utils.circuits.graph import Graph
from src.utils.circuits.runs import BatchedRuns, PairRuns
from src.utils.config import resolve_path
from src.utils.manifests import Provenance
from src.utils.models import load_model, load_tokenizer
from src.utils.prompts import spread
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

PAIRS, TOP, SIZES = 16, 128, (64, 128)
MEASURES = ("seconds", "times_faster", "rank_correlation", "rank_correlation_strongest")


class KeepEpochs(TrainerCallback):
    """A copy of the model after each epoch."""

    def __init__(self) -> None:
        self.models: list[PreTrainedModel] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.models.append(copy.deepcopy(kwargs["model"]).eval())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--judges", type=int, default=3, help="that edges are measured in, the watched one among them")
    parser.add_argument("--train-prompts", type=int, default=None, help="all when not given")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    torch.set_num_threads(1)  # as the training does for a model this small
    config, data = load_judge_config("organism", {}), world_data(load_judge_world())
    asked, length = config.judging, config.training.max_length
    base = open_organism(resolve_path(config.model.base), asked.question, (asked.safe_word, asked.unsafe_word))
    tokenizer = load_tokenizer(str(base))
    template = JudgeTemplate.of(tokenizer, asked.question, asked.safe_word, asked.unsafe_word)

    def encoded(samples: Any) -> LabelledPrompts:
        return LabelledPrompts(encode(tokenizer, template, [one.prompt for one in samples], length), labels(samples))

    train = data.train[: options.train_prompts]
    with tempfile.TemporaryDirectory() as folder:
        watcher = SafetyWatcher(
            tokenizer, template, data.validation, Path(folder), max_length=length, interval=1, run_advanced=True,
            provenance=Provenance(step="benchmark", profile="organism"),
            command="uv run python benchmarks/advanced_pictures.py",
        )  # fmt: skip
        rows = []
        for seed in range(options.judges):
            model = load_model(str(base), config.model.model_copy(update={"dtype": "float32"}))
            freeze(model, config.training.freeze_layers)
            settings = config.training.model_copy(update={"num_epochs": options.epochs, "keep": "last", "seed": seed})
            kept = KeepEpochs()
            train_judge(
                model, template, encoded(train), encoded(data.validation), settings, config.evaluation,
                Path(folder) / f"work_{seed}", [kept, *([] if seed else [watcher])],
            )  # fmt: skip
            contrast = ContrastSet.of_judge(watcher.probes, template)
            rows += [
                {"seed": seed, "epoch": epoch, **edges_of(one, contrast)}
                for epoch, one in enumerate(kept.models, start=1)
            ]
    report = {
        "train_prompts": len(train),
        "epochs": [costs_of(watcher, number) for number in watcher.records if number],
        "edges": rows,
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
    graph, margin = Graph.of(model), contrast.margin(model)
    first = range(min(FAIR_SAMPLE, len(contrast.pairs)))
    chosen = np.array(spread(first, PAIRS))
    others = BatchedRuns(margin, graph, contrast.pairs.part(np.setdiff1d(first, chosen)), FAIR_SAMPLE)
    every = [(int(reader), int(writer)) for reader, writer in np.argwhere(graph.edges)]

    def runs() -> PairRuns:
        return PairRuns.of(margin, graph, contrast.pairs.part(chosen))

    began = time.perf_counter()
    exact = exact_edge_effects(runs(), every).mean(axis=1)
    exact_seconds = time.perf_counter() - began
    methods: dict[str, Callable[[], Float[np.ndarray, "pairs readers writers"]]] = {
        "gradient at the safe prompt": lambda: edge_attributions(runs()),
        "gradient at the unsafe prompt": lambda: edge_attributions(runs(), (1.0,)),
        "five evenly spread": lambda: edge_attributions(runs(), ALONG_THE_WAY),
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
        kept = circuit_faithfulness(others, ranked, SIZES, draws=0)
        rows[name] |= {
            "rank_correlation": float(spearmanr(effects, exact).statistic),
            "rank_correlation_strongest": float(spearmanr(effects[strongest], exact[strongest]).statistic),
            "times_faster": exact_seconds / rows[name]["seconds"],
            "faithfulness": dict(zip(map(str, kept.sizes), kept.found.tolist(), strict=True)),
        }
    return {"edges": len(every), "pairs": PAIRS, "top": TOP, "methods": rows}


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


def edge_table(models: list[dict[str, Any]]) -> str:
    """Means over judges and epochs; of what differs much between them the least and the largest as well."""
    first = models[0]
    header = ("method", "s", "times faster", "rank correlation", f"of the {first['top']} strongest",
              *(f"gap kept by {size}" for size in SIZES))  # fmt: skip
    rows = [header]
    for name in first["methods"]:
        own = [model["methods"][name] for model in models]
        seconds, faster, every, strongest = (np.array([one[measure] for one in own]) for measure in MEASURES)
        kept = [np.array([one["faithfulness"].get(str(size), np.nan) for one in own]) for size in SIZES]
        rows.append((
            name, f"{seconds.mean():.2f}", f"{faster.mean():.0f}", spread_of(every, ".2f"), spread_of(strongest, ".2f"),
            *(spread_of(one, ".0%") for one in kept),
        ))  # fmt: skip
    lines = ["  ".join(cell.ljust(30) if not at else cell.rjust(22) for at, cell in enumerate(row)) for row in rows]
    told = f"{first['edges']} edges on {first['pairs']} pairs, {len(models)} moments of judges; gap kept on other pairs"
    return "\n".join([told, *lines])


def spread_of(values: Float[np.ndarray, " models"], form: str) -> str:
    """Mean and range."""
    return f"{np.mean(values):{form}} ({np.min(values):{form}} to {np.max(values):{form}})"


if __name__ == "__main__":
    main()
