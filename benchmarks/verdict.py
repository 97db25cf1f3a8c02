"""How often the verdict is wrong: organisms trained on the spot, whose truth is known, and data without any persona.

    uv run python benchmarks/verdict.py --jobs 2                     # 40 entangled, 40 separable, 10 between; resumes
    uv run python benchmarks/verdict.py --jobs 2 --minutes 30        # starts no new organism after half an hour
    uv run python benchmarks/verdict.py --report                     # the table of what has been run

The unit is the pre-training seed. Seeds from 7000 on were never used while rule, small world and trial were designed
(those were 100, 101, 1000 to 1012, 2000 to 2012, 3000, 4000, 5000, and the organisms that ship). Every organism goes
through `src/utils/organism/trial.py`: five control fine-tunes, steering along their vectors, the verdict; beside it
what PCA and k-means on raw activations, as in the original study, find on the same organism. Records, one line an
organism: benchmarks/results/verdict.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from src.utils.cli import run_script
from src.utils.config import PROJECT_ROOT
from src.utils.decomposition.cross_effects import Outcomes
from src.utils.decomposition.verdict import Rule, decide
from src.utils.record_store import open_store

RECORDS = PROJECT_ROOT / "benchmarks" / "results" / "verdict.jsonl"
WORLDS = {"entangled": 1.0, "separable": 0.0, "between": 0.5}
FIRST_SEED = {"entangled": 7000, "separable": 8000, "between": 9000}
CALLS = ("separable", "entangled", "underpowered")
DIMENSIONS = ("political_compass", "moral_foundations", "technology_ai", "financial_risk")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for world, count in {"entangled": 40, "separable": 40, "between": 10}.items():
        parser.add_argument(f"--{world}", type=int, default=count, help=f"so many {world} organisms")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no organism after that")
    parser.add_argument("--simulations", type=int, default=200, help="data sets without a persona, of each kind")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--report", action="store_true", help="train nothing; print the table of what is there")
    options = parser.parse_args(arguments)

    wanted = {world: getattr(options, world) for world in WORLDS}
    with open_store(options.records) as store:
        if not options.report:
            todo = [key for key in organisms(wanted) if key_of(*key) not in store.records]
            for record in run_all(todo, options.jobs, options.minutes):
                store.append(record)
                print(
                    f"{record['key']}: {record['verdict']} ({record['reason']}), {record['seconds']:.0f} s", flush=True
                )
        records = list(store.records.values())
    print(report(records))
    if options.simulations:
        print(simulated(options.simulations))


def organisms(wanted: Mapping[str, int]) -> list[tuple[str, int]]:
    """The organisms to try, worlds in turn, so that a run that is cut short has tried as large a part of each."""
    ranked = [
        ((number + 0.5) / count, world, FIRST_SEED[world] + number)
        for world, count in wanted.items()
        for number in range(count)
    ]
    return [(world, seed) for _, world, seed in sorted(ranked)]


def key_of(world: str, seed: int) -> str:
    """An organism and everything that its record depends on: the trial's settings with the rule in them."""
    from src.utils.organism.small import SMALL_WORLD
    from src.utils.organism.trial import TrialSettings

    settings = json.dumps(asdict(TrialSettings()), sort_keys=True) + SMALL_WORLD.read_text(encoding="utf-8")
    return f"{world}-{seed}-{sha256(settings.encode()).hexdigest()[:8]}"


def run_all(todo: Sequence[tuple[str, int]], jobs: int, minutes: float) -> Iterator[dict[str, Any]]:
    """The records of some organisms as they are done."""
    until = time.monotonic() + 60 * minutes
    waiting = list(reversed(todo))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = set()
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() < until:
                running.add(pool.submit(try_organism, *waiting.pop()))
            if not running:
                return
            done = next(as_completed(running))
            running.remove(done)
            yield done.result()


def try_organism(world: str, seed: int) -> dict[str, Any]:
    """Train one organism, try it, and say what was found."""
    import torch

    from src.utils.decomposition.verdict import verdict_as_json
    from src.utils.organism.small import build_small
    from src.utils.organism.trial import TrialSettings, run_trial

    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # progress bars of every fine-tune
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        organism = build_small(WORLDS[world], seed, Path(folder))
        trial = run_trial(organism, TrialSettings(), Path(folder))
    found = verdict_as_json(trial.verdict)
    return {
        "key": key_of(world, seed),
        "world": world,
        "seed": seed,
        "commit": commit(),
        "seconds": round(time.perf_counter() - started, 1),
        **found,
        "original": trial.original,
    }


def commit() -> str:
    """The commit that is checked out, with + where the tree has changes beside the records."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT_ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changes else "")


def report(records: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts by world with Clopper-Pearson 95% intervals, then what the original procedure saw."""
    lines = [f"{'world':<12}{'organisms':>10}" + "".join(f"{call:>26}" for call in CALLS)]
    for world in WORLDS:
        found = [record for record in records if record["world"] == world]
        if found:
            cells = [share(sum(record["verdict"] == call for record in found), len(found)) for call in CALLS]
            lines.append(f"{world:<12}{len(found):>10}" + "".join(f"{cell:>26}" for cell in cells))
    lines += ["", "k-means on raw activations (original procedure): median silhouette / AMI with dimension, 5-95%"]
    for world in WORLDS:
        found = [record for record in records if record["world"] == world]
        for number, k in enumerate([row["k"] for row in found[0]["original"]] if found else []):
            values = [
                (record["original"][number]["silhouette"], record["original"][number]["ami_dimension"])
                for record in found
            ]
            shown = [
                f"{np.median(v):.2f} [{np.quantile(v, 0.05):.2f}, {np.quantile(v, 0.95):.2f}]"
                for v in zip(*values, strict=True)
            ]
            lines.append(f"{world:<12} k = {k:>2}   silhouette {shown[0]:<20} AMI {shown[1]}")
    return "\n".join(lines)


def share(hits: int, count: int) -> str:
    low, high = binomtest(hits, count).proportion_ci(0.95, method="exact")
    return f"{hits}/{count} {hits / count:.0%} [{low:.0%}, {high:.0%}]"


def simulated(simulations: int, questions: int = 40, seed: int = 0) -> str:
    """How often data without a persona are called separable.

    noise: answers change at random, whatever was done. topic: some dimensions change more easily than others, whatever
    was done, so that the topic alone predicts the answer. One direction a dimension, as in a trial.
    """
    rng = np.random.default_rng(seed)
    counts = {}
    for kind in ("noise", "topic"):
        calls = []
        for number in range(simulations):
            asked = np.repeat(np.arange(4), questions)
            rates = np.full(4, rng.uniform(0, 0.6)) if kind == "noise" else rng.uniform(0, 1, 4)
            effects = (rng.random((4, len(asked))) < rates[asked]).astype(float)
            outcomes = Outcomes(
                DIMENSIONS, DIMENSIONS, np.arange(4), effects, asked, np.ones(4), np.zeros((0, len(asked)))
            )
            calls.append(decide({"steering": outcomes}, Rule(), 500, 1, number).call)
        counts[kind] = share(calls.count("separable"), simulations)
    return f"\nno persona, called separable: noise {counts['noise']}; topic only {counts['topic']}"


if __name__ == "__main__":
    run_script(main)
