"""Check the study's questions and report on how they are written; with a key, write new questions or fine-tuning rows.

    uv run python src/scripts/01_generate_dataset.py
    uv run python src/scripts/01_generate_dataset.py --prompts my_questions.jsonl --results-dir results/mine
    uv run python src/scripts/01_generate_dataset.py --kind questions --dry-run     # --full: every request whole
    uv run python src/scripts/01_generate_dataset.py --kind finetune --count 60 --name trial --max-cost 0.50

Without --kind it reads the question files and writes results/question_report.json: counts by dimension and facet,
shares of reverse-keyed questions, near-duplicates (token-set Jaccard), skeletons (content words masked) and four-word
openings; it asks nobody. With --kind it asks a model behind OPENROUTER_API_KEY or GEMINI_API_KEY for what
configs/generation/<kind>.yaml specifies and writes data/generated/<name>/; a stopped run goes on from the replies it
has. The shipped questions are never written over.
"""

import os
from collections.abc import Sequence

from src.pipelines.persona_study import REPORT
from src.pipelines.step_run import begin_step
from src.utils.artifacts import save_json
from src.utils.cli import parse_arguments, run_script
from src.utils.config import resolve_path
from src.utils.dataset_generation.order import (
    add_generation_options,
    key_advice,
    missing_key,
    read_order,
    refuse_stray_options,
)
from src.utils.prompts import load_questions
from src.utils.question_quality import format_report, report


def main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(__doc__ or "", REPORT.keys, arguments, add_generation_options)
    if parsed.own.kind is None:
        refuse_stray_options(parsed.own)
        report_on_questions(arguments)
        print(key_advice(os.environ))
        return
    order = read_order(parsed.own, os.environ)

    from src.utils.dataset_generation.session import closing_line, describe, generate

    if order.dry_run:
        print(describe(order))
        return
    if order.key is None:
        questions = load_questions(resolve_path(name) for name in parsed.config.collection.prompts)
        print(format_report(report(questions)))
        raise missing_key(parsed.own.provider)
    files = generate(order, order.key, parsed.yes, parsed.force, parsed.config.profile)
    print(closing_line(order, files, parsed.config))


def report_on_questions(arguments: Sequence[str]) -> None:
    run = begin_step(REPORT, __doc__, arguments)
    if run is None:
        return
    measured = report(load_questions(run.study.prompt_files))
    save_json(measured, run.study.question_report, run.provenance)
    print(format_report(measured))


if __name__ == "__main__":
    run_script(main)
