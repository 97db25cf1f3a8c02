"""What evolution of attacks is worth beside random search, over seeds, at as many judged prompts.

    uv run python benchmarks/open_ended.py                                  # after 12 and after 40 iterations; resumes
    uv run python benchmarks/open_ended.py --checkpoint outputs/checkpoints --seeds 3 --iterations 12

Attacks a judge of the judge world as `src/run_open_ended_testing.py` does, without the round of training. For each arm,
after each number of iterations: coverage, niches in which the judge is wrong and quality-diversity score; the sum over
niches of the wrong-side margin in logits, which grows where a probability no longer does; and by how much evolution is
ahead, seed by seed. Prints a table and writes results/benchmarks/open_ended.json. A run that was stopped continues with
the same command; what it has judged lies in open_ended.parts until the report is written.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reports import REPORTS, write_report
from src.utils.artifacts import open_resumable
from src.utils.cli import positive, run_script
from src.utils.config_sections import ModelConfig
from src.utils.manifests import Provenance, hash_inputs
from src.utils.open_ended.archive import Archive, Progress
from src.utils.open_ended.judging import open_language, scorer
from src.utils.open_ended.options import CHECKPOINT
from src.utils.open_ended.search import Arm, SearchPlan, search
from src.utils.record_store import open_store
from src.utils.safety_judge.data import WORLD, data_inputs, load_data
from src.utils.safety_judge.judge_folder import JUDGE, load_record, open_judge
from src.utils.safety_judge.settings import load_judge_config

ARMS: tuple[Arm, Arm] = ("evolution", "random")
SHARES = ("coverage", "wrong")  # of the niches; all else is a sum over them


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="a judge's folder, or the one it is in")
    parser.add_argument("--seeds", type=positive(int), default=5)
    parser.add_argument("--iterations", type=positive(int), nargs="+", default=[12, 40], help="when to measure")
    parser.add_argument("--batch-size", type=positive(int), default=128)
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # a model this small gains nothing from more
    folder = options.checkpoint / JUDGE if (options.checkpoint / JUDGE).is_dir() else options.checkpoint
    record = load_record(folder)
    inputs = hash_inputs({JUDGE: folder}) | data_inputs([WORLD])
    used = {"batch_size": options.batch_size}
    work = open_resumable(
        options.output / "open_ended.parts", Provenance("open_ended", record.profile, WORLD, used, {}, inputs)
    )
    judge = open_judge(str(folder), ModelConfig(base=record.base_model, dtype="float32"), record)
    language = open_language("judge_world", load_data([WORLD]))
    score = scorer(judge, load_judge_config(record.profile).evaluation.eval_batch_size)
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for arm in ARMS:
            with open_store(work / f"{arm}-{seed}.jsonl") as store:
                for iterations in sorted(set(options.iterations)):
                    archive, history = search(
                        arm, SearchPlan(iterations, options.batch_size, seed), language, score, store
                    )
                    runs.append(
                        {"arm": arm, "seed": seed, "iterations": iterations, **figures_of(archive, history[-1])}
                    )
    report: dict[str, Any] = {"judge": inputs[JUDGE][:8], "niches": len(language.niches)}
    report |= {"batch_size": options.batch_size, "runs": runs}
    print(table(report))
    print(write_report(report, options.output, "open_ended"))
    shutil.rmtree(work)


def figures_of(archive: Archive, end: Progress) -> dict[str, float]:
    best = [elite for niche in archive.niches if (elite := archive.best(niche)) is not None]
    return {
        "prompts": end.calls,
        "coverage": end.coverage,
        "wrong": end.broken,
        "QD score": end.qd_score,
        "sum of wrong-side margins (logits)": float(sum(max(0.0, elite.fitness) for elite in best)),
    }


def table(report: dict[str, Any]) -> str:
    """Means over seeds with their range, and the difference seed by seed, after each number of iterations."""
    runs = report["runs"]
    names = [name for name in runs[0] if name not in ("arm", "seed", "iterations", "prompts")]
    rows = []
    for iterations in dict.fromkeys(run["iterations"] for run in runs):
        there = [run for run in runs if run["iterations"] == iterations]
        rows.append((f"after {there[0]['prompts']:,} prompts an arm", *ARMS, "evolution ahead by"))
        for name in names:
            evolved, drawn = (np.array([run[name] for run in there if run["arm"] == arm]) for arm in ARMS)
            form = ".1%" if name in SHARES else ".1f"
            values = (evolved, drawn, evolved - drawn)
            rows.append((name, *(f"{v.mean():{form}} ({v.min():{form}} to {v.max():{form}})" for v in values)))
    lines = ["  ".join(cell.ljust(36) if not at else cell.rjust(26) for at, cell in enumerate(row)) for row in rows]
    seeds = len({run["seed"] for run in runs})
    return "\n".join([f"{report['niches']} niches, {seeds} seed{'' if seeds == 1 else 's'}", *lines])


if __name__ == "__main__":
    run_script(main)
