"""Find out how a judge does on 84 answers whose scores are known, before its scores of a model are believed.

    uv run python src/calibrate_judge.py --judge openrouter
    uv run python src/calibrate_judge.py --judge gemini --judge-model gemini-2.5-flash-lite
    uv run python src/calibrate_judge.py --judge local --judge-model Qwen/Qwen3-4B

Reads data/judge_calibration.jsonl; writes results/judge_calibration_<judge>.json and prints, by band, the shares of
answers whose scores lie in their range, and the answers that went wrong. What was asked is kept in
results/judgements.jsonl.
"""

import argparse
import re
from collections.abc import Sequence

from src.utils.artifacts import save_json
from src.utils.cli import parse_arguments, run_script
from src.utils.config import PROJECT_ROOT
from src.utils.judging.calibration import calibrate, format_calibration, load_cases
from src.utils.judging.judges import open_judge, score_answers
from src.utils.manifests import Provenance, hash_inputs

CASES = PROJECT_ROOT / "data" / "judge_calibration.jsonl"
KEYS = (
    *("model.base", "model.dtype", "model.device_map"),
    *("judging.judge", "judging.judge_model", "judging.topic", "judging.judge_batch_size"),
    *("judging.max_concurrency", "judging.request_timeout", "judging.reply_tokens", "judging.max_cost"),
)


def no_options(parser: argparse.ArgumentParser) -> None:
    """All options come from the config."""


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(__doc__ or "", KEYS, arguments, no_options)
    config, settings = parsed.config, parsed.config.judging
    cases = load_cases(CASES)
    inputs = hash_inputs({CASES.name: CASES})
    provenance = Provenance("calibrate_judge", config.profile, config.model.world, settings.model_dump(), inputs=inputs)
    store = parsed.results_dir / "judgements.jsonl"
    with open_judge(settings.judge, settings.judge_model, settings, config.model, store) as judge:
        judgements = score_answers(judge, [case.pair for case in cases], parsed.yes)
        name = judge.name
    result = calibrate(cases, judgements)
    file = parsed.results_dir / f"judge_calibration_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.json"
    save_json({"judge": name} | result, file, provenance)
    print(f"{format_calibration(result, name)}\n{file}")


if __name__ == "__main__":
    run_script(main)
