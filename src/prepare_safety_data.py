"""Put the safety judge's data together as it is trained and tested on, and count what is in it.

    uv run python src/prepare_safety_data.py
    uv run python src/prepare_safety_data.py --data data/safety xstest=xstest_prompts.csv --output_dir outputs/natural

Reads the judge world, folders of JSONL splits or published sets; writes <output_dir>/safety_data/ with train.jsonl,
validation.jsonl and test.jsonl, which --data of the other scripts takes, and report.json. No prompt and no contrast
pair is in two splits, or this says which one.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from src.pipelines.judge_study import DATA, JudgeStudy
from src.utils.artifacts import save_folder
from src.utils.cli import run_script
from src.utils.manifests import refuse_foreign_overwrite
from src.utils.safety_judge.arguments import parse_judge_arguments
from src.utils.safety_judge.data import load_data
from src.utils.safety_judge.data_report import format_report, report
from src.utils.safety_judge.samples import SPLITS, SafetySample


def main(arguments: Sequence[str]) -> None:
    parsed = parse_judge_arguments(__doc__, DATA.keys, arguments)
    study = JudgeStudy(parsed.config, parsed.output_dir)
    refuse_foreign_overwrite(study.data, parsed.config.profile, parsed.config.model.world, parsed.force)
    provenance = DATA.provenance(study)
    if not parsed.force and (fresh := DATA.freshness(study, provenance)):
        print(f"{DATA.name}: {study.data} is {fresh.reason} (--force makes it again)")
        return
    data = load_data(parsed.config.data.data)
    counted = report(data)

    def fill(folder: Path) -> None:
        for split in SPLITS:
            (folder / f"{split}.jsonl").write_text("".join(map(line, data.split(split))), encoding="utf-8")
        (folder / "report.json").write_text(json.dumps(counted, indent=2) + "\n", encoding="utf-8")

    save_folder(study.data, fill, provenance, {split: len(data.split(split)) for split in SPLITS})
    print(f"{format_report(counted)}\n{study.data}")


def line(sample: SafetySample) -> str:
    """A row as `samples.load_splits` reads it."""
    row = asdict(sample)
    row["label"] = sample.label
    del row["unsafe"]
    return json.dumps(row, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    run_script(main)
