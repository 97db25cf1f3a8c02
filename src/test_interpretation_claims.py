"""Test what the training pictures are said to mean ("Interpreting Results") over seeds on the judge world.

    uv run python src/test_interpretation_claims.py
    uv run python src/test_interpretation_claims.py --seeds 16 --epochs 5 --results_dir results/interpretation_claims
    uv run python src/test_interpretation_claims.py --own_bases     # a base of its own for every seed (80 s each)

Trains a judge a seed (about 95 s on one core) and measures it at every epoch; a seed that is done stands in
<results_dir>/seeds.jsonl and is not trained again. Writes interpretation_claims.json and interpretation_claims.html
there, and prints for each claim whether it held, did not hold or is not decided, with the number of seeds.
"""

import argparse
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.utils.artifacts import save_artifact, save_json
from src.utils.cli import OneLineParser, run_script, with_hyphens
from src.utils.config import PROJECT_ROOT, resolve_path
from src.utils.errors import UserError
from src.utils.manifests import Provenance, as_json, hash_inputs
from src.utils.record_store import open_store
from src.utils.safety_judge.data import WORLD, data_inputs
from src.utils.safety_judge.judge_folder import check_writable
from src.utils.safety_judge.settings import load_judge_config

STEP, RESULTS = "test_interpretation_claims", PROJECT_ROOT / "results" / "interpretation_claims"
LEAST_EPOCHS = 3  # early, middle, late


def main(arguments: Sequence[str]) -> None:
    own = parser().parse_args([with_hyphens(argument) for argument in arguments])
    if own.epochs < LEAST_EPOCHS or own.seeds < 1:
        raise UserError(f"--seeds {own.seeds} --epochs {own.epochs}: needs a seed and {LEAST_EPOCHS} epochs", 2)
    folder = own.results_dir.absolute()
    check_writable(folder)
    config = load_judge_config()

    import torch

    from src.utils.interpretation_claims.claims import CLAIMS
    from src.utils.interpretation_claims.moments import MEASURED
    from src.utils.interpretation_claims.report import claims_report, format_verdicts
    from src.utils.interpretation_claims.training import SeedPlan, collect, open_base, train_seed
    from src.utils.safety_judge.data import load_data
    from src.utils.safety_judge.evaluation import format_table
    from src.utils.safety_judge.world import load_judge_world
    from src.visualizations.claims_figures import claims_page
    from src.visualizations.figure_page import page_files

    torch.set_num_threads(1)  # a model this small is slower on more; nor do its bytes depend on their number
    world = load_judge_world()
    plan = SeedPlan(config, load_data([WORLD]), world, open_base(config, world, own.own_bases), own.epochs)
    used: dict[str, Any] = {name: getattr(config, name).model_dump() for name in ("judging", "training")}
    used |= {"epochs": own.epochs, "own_bases": own.own_bases, "measured": MEASURED}
    inputs = data_inputs([WORLD]) | ({} if own.own_bases else hash_inputs({"base": resolve_path(config.model.base)}))
    mark = hashlib.sha256(json.dumps([as_json(used), inputs], sort_keys=True).encode()).hexdigest()[:12]
    seeds = range(own.first_seed, own.first_seed + own.seeds)
    with open_store(folder / "seeds.jsonl") as store:
        trainings = collect(store, mark, seeds, lambda seed: train_seed(plan, seed))
    result = claims_report(CLAIMS, trainings)
    provenance = Provenance(
        STEP, config.profile, "judge_world", used, {"first": own.first_seed, "n": own.seeds}, inputs
    )
    save_json(result, folder / "interpretation_claims.json", provenance)
    command = shlex.join(["uv", "run", "python", "src/test_interpretation_claims.py", *arguments])
    page = claims_page(result, command, inputs)
    files = page_files([page], folder, format_verdicts(result), page.sentence)
    save_artifact(folder / page.file_name, files, provenance, {"pages": [page.file_name]})
    print(format_table(format_verdicts(result)))
    print(folder / page.file_name)


def parser() -> argparse.ArgumentParser:
    found = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    found.add_argument("--seeds", type=int, default=8, help="how many trainings (default 8; fewer decide nothing)")
    found.add_argument("--first-seed", type=int, default=0, help="the first of them (default 0)")
    found.add_argument("--epochs", type=int, default=5, help="of each training (default 5)")
    found.add_argument("--own-bases", action="store_true", help="teach every seed a base of its own (80 s each)")
    found.add_argument("--results-dir", type=Path, default=RESULTS, help="default results/interpretation_claims")
    return found


if __name__ == "__main__":
    run_script(main)
