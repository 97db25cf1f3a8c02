"""Measure a safety judge on its test split, beside a bag of words and linear probes of its base model.

    uv run python src/evaluate_safety.py
    uv run python src/evaluate_safety.py --also xstest=xstest_prompts.csv data/safety
    uv run python src/evaluate_safety.py --output_dir outputs/qwen3_4b --data data/safety --no-baselines

Reads <output_dir>/safety_judge/ and the data that it was trained on (or --data); writes evaluation.json,
evaluation.html and, unless --no-baselines, baselines.json there. Temperature and thresholds come from validation.
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from src.pipelines.judge_study import EVALUATE, JudgeStudy
from src.utils.artifacts import save_artifact, save_json
from src.utils.cli import run_script
from src.utils.manifests import Provenance, read_manifest
from src.utils.safety_judge.arguments import PATH_KEYS, parse_judge_arguments, with_local_paths
from src.utils.safety_judge.data import data_inputs, load_data, load_everything
from src.utils.safety_judge.judge_folder import JUDGE, JudgeRecord, check_writable, load_record, open_judge
from src.utils.safety_judge.settings import JudgeConfig


def main(arguments: Sequence[str]) -> None:
    parsed = parse_judge_arguments(__doc__, EVALUATE.keys, arguments, own_options)
    output_dir, settings = parsed.output_dir, parsed.config.evaluation
    record = load_record(output_dir / JUDGE)
    check_writable(output_dir)
    is_given = parsed.config.sources.get(PATH_KEYS[1]) == "the command line"
    names = parsed.config.data.data if is_given else record.data
    also = {name: load_everything(name) for name in with_local_paths(parsed.own.also or [])}
    study = JudgeStudy(as_trained(parsed.config, record, names, output_dir), output_dir)
    study = replace(study, has_baselines=not parsed.own.no_baselines)
    provenance = with_further_data(EVALUATE.provenance(study), [*also])
    if not parsed.force and (fresh := EVALUATE.freshness(study, provenance)):
        print(f"{EVALUATE.name}: {study.evaluation_page} is {fresh.reason} (--force evaluates again)")
        return
    data = load_data(names)

    import torch

    from src.utils.models import SMALL_MODEL
    from src.utils.safety_judge.baselines import bag_of_words, layer_probes
    from src.utils.safety_judge.evaluation import (
        Scored,
        baseline_table,
        compare,
        evaluate,
        format_table,
        measured,
        results_table,
    )
    from src.utils.safety_judge.scoring import score
    from src.visualizations.figure_page import page_files
    from src.visualizations.safety_figures import evaluation_pages

    if record.trainable_parameters + record.frozen_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    placement = parsed.config.model.model_copy(update={"base": record.base_model})
    judge = open_judge(str(output_dir / JUDGE), placement, record)

    def scored(samples: tuple) -> Scored:
        return Scored(samples, score(judge.model, judge.encode(samples), judge.template, settings.eval_batch_size))

    test = scored(data.test)
    result = {"judge": record.model_dump()} | evaluate(scored(data.validation), test, settings)
    result["also"] = [{"name": name, "test": measured(scored(samples), settings)} for name, samples in also.items()]
    result["baselines"], probes = [], []
    if study.has_baselines:
        words = bag_of_words(data.train, data.validation, data.test, settings)
        base = open_judge(record.base_model, placement, record)
        probes = layer_probes(base, data.train, data.validation, data.test, settings)
        result["baselines"] = compare(test, words, probes, settings)
        save_json({"baselines": baseline_table(test, [words, *probes], settings)}, study.baselines, provenance)
    save_json(result, study.evaluation, provenance)
    table = results_table(result)
    command = shlex.join(["uv", "run", "python", "src/evaluate_safety.py", *arguments])
    pages = evaluation_pages(result, baseline_table(test, probes, settings), command, provenance.inputs)
    files = page_files(pages, output_dir, table, "How well the judge tells unsafe prompts from safe ones.")
    save_artifact(output_dir / pages[0].file_name, files, provenance, {"pages": [page.file_name for page in pages]})
    print(format_table(table))
    for baseline in result["baselines"]:
        gain = baseline["judge_gain_in_accuracy"]
        low, high = gain["interval"]
        print(f"judge minus {baseline['name']}, accuracy: {gain['estimate']:+.3f} [{low:+.3f}, {high:+.3f}]")
    print(output_dir / pages[0].file_name)


def as_trained(config: JudgeConfig, record: JudgeRecord, names: list[str], output_dir: Path) -> JudgeConfig:
    """The configuration with the profile, model and data of the judge that is there."""
    made = read_manifest(output_dir / JUDGE)
    model = config.model.model_copy(update={"base": record.base_model, "world": made.world if made else None})
    data = config.data.model_copy(update={"data": names})
    return config.model_copy(update={"profile": record.profile, "model": model, "data": data})


def with_further_data(provenance: Provenance, also: list[str]) -> Provenance:
    return replace(
        provenance, config={**provenance.config, "also": also}, inputs={**provenance.inputs, **data_inputs(also)}
    )


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--also", nargs="+", metavar="DATA", help="further data, all of it only tested on")
    parser.add_argument("--no-baselines", action="store_true", help="the judge alone: no bag of words, no probes")


if __name__ == "__main__":
    run_script(main)
