"""Fine-tune the upper layers of a language model into a judge that says whether a prompt is safe.

    uv run python src/train_safety_judge.py
    uv run python src/train_safety_judge.py --visualize_during_training --visualization_interval 1
    uv run python src/train_safety_judge.py --profile qwen3_4b --data data/safety xstest=xstest_prompts.csv
    uv run accelerate launch --num_processes 4 src/train_safety_judge.py --profile llama3_8b

Reads labelled prompts and a base model (profile organism: the judge world, and an organism built on the spot and kept);
writes <output_dir>/safety_judge/ (weights, tokenizer, judge.json) and training_log.jsonl. A training that was
stopped continues with --resume at its last checkpoint, to the same weights.
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence

from src.pipelines.judge_study import TRAIN, JudgeStudy
from src.utils.atomic_writes import write_atomically
from src.utils.cli import run_script
from src.utils.config import resolve_path
from src.utils.manifests import refuse_foreign_overwrite
from src.utils.ranks import join_ranks
from src.utils.safety_judge.arguments import parse_judge_arguments
from src.utils.safety_judge.checkpoints import open_checkpoints
from src.utils.safety_judge.data import load_data
from src.utils.safety_judge.judge_folder import Judge, JudgeRecord, check_writable, save_judge
from src.utils.safety_judge.samples import SPLITS, labels
from src.utils.safety_judge.settings import check_watching

LOG, CHECKPOINTS = "training_log.jsonl", "safety_judge.checkpoints"


def main(arguments: Sequence[str]) -> None:
    parsed = parse_judge_arguments(__doc__, TRAIN.keys, arguments, own_options)
    config, output_dir, settings = parsed.config, parsed.output_dir, parsed.config.training
    study = JudgeStudy(config, output_dir)
    folder = study.judge
    check_watching(config.watching)
    check_writable(output_dir)
    refuse_foreign_overwrite(folder, config.profile, config.model.world, parsed.force)
    provenance = TRAIN.provenance(study)
    if not parsed.force and (fresh := TRAIN.freshness(study, provenance)):
        print(f"{TRAIN.name}: {folder} is {fresh.reason} (--force trains again)")
        return
    data = load_data(config.data.data)
    ranks, checkpoints = join_ranks(), output_dir / CHECKPOINTS
    if ranks.is_first:
        open_checkpoints(checkpoints, provenance, parsed.own.resume, parsed.force)

    import torch
    from transformers import TrainerCallback

    from src.utils.models import load_model, load_tokenizer
    from src.utils.safety_judge.freezing import freeze
    from src.utils.safety_judge.organism import open_organism
    from src.utils.safety_judge.scoring import JudgeTemplate
    from src.utils.safety_judge.training import LabelledPrompts, train_judge

    base, asked = config.model.base, config.judging
    if config.model.world is not None:
        torch.set_num_threads(1)  # a model this small is slower on more; nor do its bytes depend on their number
        if ranks.is_first:
            open_organism(resolve_path(base), asked.question, (asked.safe_word, asked.unsafe_word))
    ranks.wait()
    tokenizer = load_tokenizer(base)
    model = load_model(base, config.model.model_copy(update={"dtype": "float32"}))
    template = JudgeTemplate.of(tokenizer, asked.question, asked.safe_word, asked.unsafe_word)
    judge = Judge(model, tokenizer, template, settings.max_length)
    frozen = freeze(model, settings.freeze_layers)
    print(f"{frozen.trainable_parameters:,} weights learn, {frozen.frozen_parameters:,} are frozen")
    train, validation = (
        LabelledPrompts(judge.encode(samples), labels(samples)) for samples in (data.train, data.validation)
    )
    callbacks: list[TrainerCallback] = []
    if config.watching.visualize_during_training:
        from src.utils.watching.safety_watcher import SafetyWatcher

        callbacks.append(
            SafetyWatcher(
                tokenizer, template, data.validation, output_dir, max_length=settings.max_length,
                provenance=provenance, command=command_of(arguments),
                interval=config.watching.visualization_interval, run_advanced=config.watching.run_advanced_mi,
                budget_seconds=config.watching.visualization_budget,
            )
        )  # fmt: skip
    log, epoch = train_judge(model, template, train, validation, settings, config.evaluation, checkpoints, callbacks)
    ranks.wait()
    if not ranks.is_first:
        return
    record = JudgeRecord(
        profile=config.profile, base_model=base, **asked.model_dump(), max_length=settings.max_length,
        frozen_blocks=frozen.blocks, n_blocks=frozen.n_blocks, head_is_tied=frozen.tied,
        trainable_parameters=frozen.trainable_parameters, frozen_parameters=frozen.frozen_parameters,
        data=config.data.data, epoch=epoch, epochs=settings.num_epochs,
    )  # fmt: skip
    with write_atomically(output_dir / LOG) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    save_judge(folder, judge, record, provenance)
    shutil.rmtree(checkpoints)
    last = next(row for row in log if row["kind"] == "epoch" and row["epoch"] == epoch)
    sizes = ", ".join(f"{len(data.split(name)):,} {name}" for name in SPLITS)
    print(f"{sizes}; epoch {epoch:g}: validation accuracy {last['accuracy']:.1%}, loss {last['loss']:.4f}: {folder}")


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="continue a stopped training at its last checkpoint")


def command_of(arguments: Sequence[str]) -> str:
    return shlex.join(["uv", "run", "python", "src/train_safety_judge.py", *arguments])


if __name__ == "__main__":
    run_script(main)
