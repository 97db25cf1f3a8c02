"""Score every answer of step 3: how misaligned, how coherent, and what it talks about.

    uv run python src/scripts/04_judge_responses.py --profile organism
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge gemini --max-cost 5 --limit 100
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge local --judge-model Qwen/Qwen3-14B
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge openrouter --second-judge gemini

Reads results/persona_data.pkl; writes results/final_dataset_with_em_scores.pkl and results/em_rates.json (EM rate,
transfer, flip, coherence and mean score by dimension and facet, with 95% bootstrap intervals over prompts; missing
scores by reason). With a second judge also results/judge_agreement.json and judge_agreement.html, the Bland-Altman
figure as one file. What a judge said is kept in results/judgements.jsonl: a stopped run continues there, and missing
scores are asked for again by the next. What --limit or --max-cost leaves is a random sample of the questions, all
their answers judged.
"""

from collections.abc import Sequence

import pandas as pd

from src.pipelines.persona_study import COLLECT, JUDGE
from src.pipelines.step_command import command_of
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, save_frame, save_json
from src.utils.cli import run_script
from src.utils.em_rates import em_rates, format_rates, rates_as_json
from src.utils.judging.judgement import missing_scores
from src.utils.judging.judges import score_frames
from src.utils.judging.prompt_sample import format_sample, judged_sample


def main(arguments: Sequence[str]) -> None:
    run = begin_step(JUDGE, __doc__, arguments)
    if run is None:
        return
    frame = load_frame(run.study.persona_data, made_by=COLLECT.name)
    frames = score_frames(frame, run.config.judging, run.config.model, run.study.judgements, run.yes)
    judged = next(frames)
    save_rates(run, judged)  # before a second judge is asked, whatever becomes of that
    for other in frames:
        save_agreement(run, judged, other)


def save_rates(run: StepRun, judged: pd.DataFrame) -> None:
    settings, study = run.config.judging, run.study
    rates = em_rates(
        judged, settings.em_threshold, settings.coherence_threshold, settings.bootstrap_resamples, settings.seed
    )
    counts = {"missing": missing_scores(judged), "sample": judged_sample(judged, settings.seed)}
    save_json(rates_as_json(rates) | counts, study.rates, run.provenance)
    save_frame(judged, study.scored, run.provenance)
    print(format_rates(rates))
    print_counts(judged, settings.seed)
    print(f"{len(judged)} rows: {study.scored}\nrates: {study.rates}")


def save_agreement(run: StepRun, judged: pd.DataFrame, other: pd.DataFrame) -> None:
    from src.utils.judging.agreement import agreement_of, format_agreement
    from src.visualizations.agreement_figures import agreement_page
    from src.visualizations.figure_page import page_html, standalone_html

    settings, study = run.config.judging, run.study
    agreement = agreement_of(judged, other, settings.em_threshold, settings.coherence_threshold)
    page = agreement_page(agreement, command_of(JUDGE, study, names_paths=False), run.provenance.inputs, "Scores")
    pages = {study.agreement_page: standalone_html(page_html(page))}
    save_json(agreement, study.agreement, run.provenance, pages)
    print_counts(other, settings.seed)
    print(f"{format_agreement(agreement)}\nagreement: {study.agreement}\nBland-Altman figure: {study.agreement_page}")


def print_counts(judged: pd.DataFrame, seed: int) -> None:
    """What a judge was asked, and what has no score and why."""
    print(f"{judged['judge'].iloc[0]} {format_sample(judged_sample(judged, seed))}")
    for reason, count in missing_scores(judged).items():
        print(f"not judged: {count:>5} x {reason}")


if __name__ == "__main__":
    run_script(main)
