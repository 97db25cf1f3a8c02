"""Peak memory of per-token collection as the study grows: what streams to disk must not stay in memory.

    uv run python run_full_pipeline.py --only 02 && uv run python benchmarks/token_memory.py
    uv run python benchmarks/token_memory.py --rows 200 885 3540

Each line is a run of step 3 with --tokens in a process of its own, for so many answers of every arm (questions times
samples), without and with the token shards: the frame and the means grow with the answers, the tokens must not.
Writes results/benchmarks/token_memory.json.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.reports import REPORTS, write_report
from src.pipelines.memory_watch import memory_watched
from src.utils.config import PROJECT_ROOT

QUESTIONS = 885


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 885, 1770, 3540], help="answers of each arm")
    parser.add_argument("--results-dir", type=Path, default=PROJECT_ROOT / "results", help="where the adapter is")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    print(f"{'answers an arm':>14} {'peak, means only':>18} {'peak, with tokens':>18} {'token shards':>14}", flush=True)
    found = []
    for rows in options.rows:
        means, _ = collect(rows, options.results_dir, [])
        tokens, written = collect(rows, options.results_dir, ["--tokens"])
        print(f"{rows:>14} {means:>14.0f} MiB {tokens:>14.0f} MiB {written:>10.0f} MiB", flush=True)
        found.append(
            {"answers_an_arm": rows, "peak_means_mib": means, "peak_tokens_mib": tokens, "token_shards_mib": written}
        )
    print(write_report({"sizes": found}, options.output, "token_memory"))


def collect(rows: int, results_dir: Path, options: list[str]) -> tuple[float, float]:
    """Run step 3; returns the peak memory of all its processes and what the token shards take on disk, in MiB."""
    size = ["--limit", str(rows)] if rows < QUESTIONS else ["--samples", str(round(rows / QUESTIONS))]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(results_dir / "adapters", Path(folder) / "adapters")
        script = str(PROJECT_ROOT / "src" / "scripts" / "03_collect_activations.py")
        command = [sys.executable, script, "--results-dir", folder, *size, *options]
        with memory_watched() as memory:
            code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode
        if code:
            sys.exit(f"{' '.join(command)}: exit code {code}")
        written = sum(file.stat().st_size for file in (Path(folder) / "persona_tokens").glob("*.safetensors"))
    return memory.value / 2**20, written / 2**20


if __name__ == "__main__":
    main()
