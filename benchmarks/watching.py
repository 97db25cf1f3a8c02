"""What watching a judge costs: seconds and memory of each picture beside an epoch of training.

    uv run python benchmarks/watching.py                          # the organism, on this machine
    uv run python benchmarks/watching.py --architecture qwen3_4b  # Qwen3-4B's shape with random weights, on a GPU
    uv run python benchmarks/watching.py --output outputs/benchmarks

The organism is that of the judge world in size and data, from random weights. The original's document speaks of 2 to 3
minutes an epoch for its pictures 1, 2, 3 and 6; here 1, 2 and 6 are held against the larger of 10% of an epoch and 5 s.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from benchmarks.reports import REPORTS, circumstances, device_kind, write_report
from src.utils.manifests import Provenance
from src.utils.models import pick_device
from src.utils.organism.model import new_model
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.organism import train_tokenizer
from src.utils.safety_judge.samples import labels
from src.utils.safety_judge.scoring import JudgeTemplate, encode
from src.utils.safety_judge.settings import load_judge_config
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from src.utils.safety_judge.world import load_judge_world, world_data
from src.utils.watching.epoch_metrics import EpochMetrics
from src.utils.watching.safety_watcher import BUDGET_SECONDS, STATISTICS_SAMPLES, SafetyWatcher

ORIGINAL_SECONDS = (120, 180)
HELD = ("token_attribution", "layer_activation")  # and the progress page; the comparison is measured beside them
LARGEST_SHARE, LEAST_SECONDS = 0.10, 5.0
QWEN3_4B: dict[str, Any] = {
    "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=("organism", "qwen3_4b"), default="organism")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--train-prompts", type=int, default=None, help="all when not given")
    parser.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds a picture")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    config, world = load_judge_config("organism", {}), load_judge_world()
    words = config.judging
    tokenizer = train_tokenizer(world, words.question, (words.safe_word, words.unsafe_word))
    template = JudgeTemplate.of(tokenizer, words.question, words.safe_word, words.unsafe_word)
    model: PreTrainedModel = new_model(world.architecture, tokenizer, world.seed)
    frozen = config.training.freeze_layers
    if options.architecture == "qwen3_4b":
        model, frozen = Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B)), 24
    else:
        torch.set_num_threads(1)  # as the training does for a model this small
    model.to(pick_device())
    freeze(model, frozen)
    data, length = world_data(world), config.training.max_length

    def encoded(samples: Any) -> LabelledPrompts:
        return LabelledPrompts(encode(tokenizer, template, [one.prompt for one in samples], length), labels(samples))

    train = data.train[: options.train_prompts]
    with tempfile.TemporaryDirectory() as folder:
        watcher = SafetyWatcher(
            tokenizer, template, data.validation, Path(folder), max_length=length, interval=1,
            budget_seconds=options.budget, provenance=Provenance(step="benchmark", profile="organism"),
            command="uv run python benchmarks/watching.py",
        )  # fmt: skip
        settings = config.training.model_copy(update={"num_epochs": options.epochs, "keep": "last"})
        train_judge(
            model, template, encoded(train), encoded(data.validation), settings, config.evaluation,
            Path(folder) / "work", [watcher],
        )  # fmt: skip
    report = measured([record for record in watcher.records.values() if record.number], watcher, len(train))
    report = {"architecture": options.architecture} | report
    file = write_report(report, options.output, f"watching_{options.architecture}_{device_kind()}")
    print(table(circumstances() | report), file, sep="\n")


def measured(records: list[EpochMetrics], watcher: SafetyWatcher, n_train: int) -> dict[str, Any]:
    """Means over the visualised epochs."""
    count = len(records)
    epoch = sum(record.training_seconds for record in records) / count
    watching = sum(record.watching_seconds for record in records) / count
    pictures: dict[str, dict[str, Any]] = {}
    for position, picture in enumerate(watcher.pictures):
        own = [record.pictures[position] for record in records]
        pictures[picture.name] = {
            "seconds": sum(one.seconds for one in own) / count,
            "peak_memory_gb": max(one.peak_memory_bytes for one in own) / 1e9,
            "raised_gb": max(one.memory_raised_bytes for one in own) / 1e9,
            "sub_sampled": [one.sub_sampled for one in own if one.sub_sampled],
            "failures": [one.failure for one in own if one.failure],
        }
    pictures_seconds = sum(one["seconds"] for one in pictures.values())
    return {
        "train_prompts": n_train,
        "statistics_prompts": min(STATISTICS_SAMPLES, len(watcher.probes.statistics)),
        "shown_prompts": len(watcher.probes.shown),
        "epoch_seconds": epoch,
        "watching_seconds": watching,
        "held_seconds": watching - sum(one["seconds"] for name, one in pictures.items() if name not in HELD),
        "statistics_and_files_seconds": watching - pictures_seconds,
        "allowed_seconds": max(LARGEST_SHARE * epoch, LEAST_SECONDS),
        "pictures": pictures,
        "original_seconds": ORIGINAL_SECONDS,
    }


def table(report: dict[str, Any]) -> str:
    epoch = report["epoch_seconds"]
    rows = [("picture", "s a visualised epoch", "% of an epoch", "peak GB", "raised by GB")]
    for name, one in report["pictures"].items():
        seconds = one["seconds"]
        memory = (f"{one['peak_memory_gb']:.2f}", f"{one['raised_gb']:.3f}")
        rows.append((name, f"{seconds:.2f}", f"{100 * seconds / epoch:.0f}", *memory))
    rest, whole = report["statistics_and_files_seconds"], report["watching_seconds"]
    rows.append(("statistics, progress, files", f"{rest:.2f}", f"{100 * rest / epoch:.0f}", "", ""))
    rows.append(("all", f"{whole:.2f}", f"{100 * whole / epoch:.0f}", "", ""))
    held = report["held_seconds"]
    verdict = "within" if held <= report["allowed_seconds"] else "OVER"
    cut = [
        f"{name}: {note}" for name, one in report["pictures"].items() for note in one["sub_sampled"] + one["failures"]
    ]
    return "\n".join(
        [
            f"{report['architecture']} on {report['device']}",
            f"an epoch of {report['train_prompts']} prompts and its validation: {epoch:.1f} s",
            f"{report['shown_prompts']} prompts shown, {report['statistics_prompts']} in the statistics",
            *("  ".join(cell.ljust(28) if not i else cell.rjust(20) for i, cell in enumerate(row)) for row in rows),
            f"{', '.join(HELD)}, progress: {held:.2f} s, {verdict} {report['allowed_seconds']:.1f} s",
            f"the original's document: {ORIGINAL_SECONDS[0]} to {ORIGINAL_SECONDS[1]} s for all of these",
            *cut,
        ]
    )


if __name__ == "__main__":
    main()
