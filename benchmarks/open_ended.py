"""What evolution of attacks is worth beside random search, over seeds, at as many judged prompts.

    uv run python benchmarks/open_ended.py
    uv run python benchmarks/open_ended.py --checkpoint outputs/checkpoints --seeds 5 --iterations 40 --batch-size 128

Attacks a judge of the judge world as `src/run_open_ended_testing.py` does, without the round of training. For each arm:
coverage, niches in which the judge is wrong and quality-diversity score, halfway and at the end; the sum over niches of
the wrong-side margin in logits, which grows where a probability no longer does; and by how much evolution is ahead,
seed by seed. Prints a table and writes results/benchmarks/open_ended.json.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.reports import REPORTS, write_report
from src.utils.config_sections import ModelConfig
from src.utils.open_ended.archive import Archive, Progress
from src.utils.open_ended.judging import open_language, scorer
from src.utils.open_ended.options import CHECKPOINT
from src.utils.open_ended.search import Arm, SearchPlan, search
from src.utils.record_store import open_store
from src.utils.safety_judge.data import WORLD, load_data
from src.utils.safety_judge.judge_folder import JUDGE, load_record, open_judge
from src.utils.safety_judge.settings import load_judge_config

ARMS: tuple[Arm, Arm] = ("evolution", "random")
SHARES = ("coverage", "wrong")  # of the niches; all else is a sum over them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="a judge's folder, or the one it is in")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    torch.set_num_threads(1)  # a model this small gains nothing from more
    folder = options.checkpoint / JUDGE if (options.checkpoint / JUDGE).is_dir() else options.checkpoint
    record = load_record(folder)
    judge = open_judge(str(folder), ModelConfig(base=record.base_model, dtype="float32"), record)
    language = open_language("judge_world", load_data([WORLD]))
    score = scorer(judge, load_judge_config(record.profile).evaluation.eval_batch_size)
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        plan = SearchPlan(options.iterations, options.batch_size, seed)
        for arm in ARMS:
            with tempfile.TemporaryDirectory() as work, open_store(Path(work) / "iterations.jsonl") as store:
                runs[arm].append(figures_of(*search(arm, plan, language, score, store)))
    report = {"niches": len(language.niches), "prompts": options.iterations * options.batch_size, "runs": runs}
    print(table(report))
    print(write_report(report, options.output, "open_ended"))


def figures_of(archive: Archive, history: list[Progress]) -> dict[str, float]:
    half, end = history[len(history) // 2 - 1], history[-1]
    best = [elite for niche in archive.niches if (elite := archive.best(niche)) is not None]
    return {
        "coverage": end.coverage,
        "wrong, halfway": half.broken,
        "wrong": end.broken,
        "QD score, halfway": half.qd_score,
        "QD score": end.qd_score,
        "sum of wrong-side margins (logits)": float(sum(max(0.0, elite.fitness) for elite in best)),
    }


def table(report: dict[str, Any]) -> str:
    """Means over seeds with their range, and the difference seed by seed."""
    runs = report["runs"]
    rows = [("", *ARMS, "evolution ahead by")]
    for name in runs[ARMS[0]][0]:
        evolved, drawn = (np.array([run[name] for run in runs[arm]]) for arm in ARMS)
        form = ".1%" if name.startswith(SHARES) else ".1f"
        shown = (f"{v.mean():{form}} ({v.min():{form}} to {v.max():{form}})" for v in (evolved, drawn, evolved - drawn))
        rows.append((name, *shown))
    lines = ["  ".join(cell.ljust(36) if not at else cell.rjust(26) for at, cell in enumerate(row)) for row in rows]
    seeds = len(runs[ARMS[0]])
    return "\n".join([f"{report['niches']} niches, {report['prompts']:,} prompts an arm, {seeds} seeds", *lines])


if __name__ == "__main__":
    main()
