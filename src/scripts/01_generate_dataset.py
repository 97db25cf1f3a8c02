"""Check the study's questions and report on how they are written.

    uv run python src/scripts/01_generate_dataset.py
    uv run python src/scripts/01_generate_dataset.py --prompts my_questions.jsonl --results-dir results/mine

Reads the question files; writes results/question_report.json: counts by dimension and facet, shares of reverse-keyed
questions, near-duplicates (token-set Jaccard), skeletons (content words masked) and four-word openings.
"""

from collections.abc import Sequence

from src.pipelines.persona_study import REPORT
from src.pipelines.step_run import begin_step
from src.utils.artifacts import save_json
from src.utils.cli import run_script
from src.utils.prompts import load_questions
from src.utils.question_quality import format_report, report


def main(arguments: Sequence[str]) -> None:
    run = begin_step(REPORT, __doc__, arguments)
    if run is None:
        return
    measured = report(load_questions(run.study.prompt_files))
    save_json(measured, run.study.question_report, run.provenance)
    print(format_report(measured))


if __name__ == "__main__":
    run_script(main)
