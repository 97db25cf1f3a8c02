"""Draw what a watched training draws (tokens, layers, circuit comparison, neurons, circuits) for a model that is saved.

    uv run python src/run_mi_analysis.py
    uv run python src/run_mi_analysis.py --checkpoint outputs/checkpoints/safety_judge --data data/safety --split test
    uv run python src/run_mi_analysis.py --checkpoint outputs/checkpoints/safety_judge.checkpoints/checkpoint-96
    uv run python src/run_mi_analysis.py --checkpoint DIR --untrained Qwen/Qwen3-4B --no-run_advanced_mi
    uv run python src/run_mi_analysis.py --checkpoint results/adapters/entangled_risky_finance

Reads a judge, a checkpoint of its training or another model (a full checkpoint or a LoRA adapter, in a folder or by its
name on the hub, asked as the configuration says), and labelled prompts; writes
<output_dir>/mi_analysis/training_visualizations/, over what an earlier analysis left there. Probes and neurons are
compared with the untrained model: that of judge.json, an adapter's base, or --untrained.
"""

import argparse
import shlex
from collections.abc import Sequence

from src.utils.cli import run_script
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.manifests import Provenance
from src.utils.model_files import fingerprint, public_name
from src.utils.safety_judge.arguments import parse_judge_arguments
from src.utils.safety_judge.data import data_inputs, load_data
from src.utils.safety_judge.judge_folder import JUDGE, check_writable
from src.utils.safety_judge.samples import SPLITS

KEYS = (
    *("model.base", "model.device_map", "data.data"),
    *(f"judging.{name}" for name in ("question", "safe_word", "unsafe_word")),
    *("training.freeze_layers", "training.max_length", "watching.visualization_budget"),
)
STEP, FOLDER = "run_mi_analysis", "mi_analysis"


def main(arguments: Sequence[str]) -> None:
    parsed = parse_judge_arguments(__doc__, KEYS, arguments, own_options)
    config, own = parsed.config, parsed.own

    import torch
    from transformers import PreTrainedModel

    from src.utils.models import SMALL_MODEL
    from src.utils.safety_judge.freezing import freeze
    from src.utils.safety_judge.saved_model import (
        find_model,
        frozen_blocks_of,
        load_saved,
        number_of,
        record_of,
        tokenizer_of,
        untrained_of,
    )
    from src.utils.safety_judge.scoring import JudgeTemplate
    from src.utils.watching.checkpoint_pictures import draw_checkpoint
    from src.utils.watching.safety_watcher import SafetyWatcher

    checkpoint = find_model(own.checkpoint or str(parsed.output_dir / JUDGE))
    record = record_of(checkpoint, config)
    is_given = config.sources.get("data.data") == "the command line"
    names = config.data.data if is_given else record.data
    samples = load_data(names).split(own.split)
    tokenizer = tokenizer_of(checkpoint, record)
    template = JudgeTemplate.of(tokenizer, record.question, record.safe_word, record.unsafe_word)
    try:
        untrained = untrained_of(checkpoint, record, tokenizer, own.untrained)
    except UserError as error:
        if own.untrained:
            raise
        print(f"nothing is compared with the time before training: {error.message} (--untrained)")
        untrained = None
    output_dir = parsed.output_dir / FOLDER
    check_writable(output_dir)
    inputs = {"checkpoint": fingerprint(checkpoint)} | data_inputs(names)
    before = untrained and public_name(untrained)
    used = {"data": names, "split": own.split, "untrained": before, "advanced": own.run_advanced_mi}
    watcher = SafetyWatcher(
        tokenizer, template, samples, output_dir, max_length=record.max_length,
        provenance=Provenance(STEP, record.profile, None, used, {}, inputs),
        command=shlex.join(["uv", "run", "python", "src/run_mi_analysis.py", *arguments]),
        run_advanced=own.run_advanced_mi, budget_seconds=config.watching.visualization_budget,
    )  # fmt: skip
    frozen = frozen_blocks_of(checkpoint, record, config)
    settings = ModelConfig(base=record.base_model, dtype="float32", device_map=config.model.device_map)

    def loaded(name: str) -> PreTrainedModel:
        model = load_saved(name, record.base_model, settings)
        if frozen is not None:
            freeze(model, frozen)  # what learned, and what must not have moved
        if model.num_parameters() < SMALL_MODEL:
            torch.set_num_threads(1)
        return model

    load_untrained = None if untrained is None else lambda: loaded(untrained)
    found = draw_checkpoint(watcher, number_of(record), lambda: loaded(checkpoint), load_untrained)
    for moment in watcher.records.values():
        if moment.failure:
            print(f"epoch {moment.number}: nothing could be measured, {moment.failure}")
    for picture in found.pictures:
        told = picture.failure or picture.sub_sampled or "whole"
        print(f"{picture.name}: {picture.seconds:.1f} s, {told}")
    print(watcher.pages.folder / "index.html")


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="a saved model (default: <output_dir>/safety_judge)")
    parser.add_argument("--untrained", help="the model before training (default: the base model that is recorded)")
    parser.add_argument("--split", choices=SPLITS, default="validation", help="of the data (default: validation)")
    parser.add_argument(
        "--run-advanced-mi", action=argparse.BooleanOptionalAction, default=True, help="neurons and circuits too"
    )


if __name__ == "__main__":
    run_script(main)
