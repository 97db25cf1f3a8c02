"""Score every answer of step 3: how misaligned, how coherent, and what it talks about.

    uv run python src/scripts/04_judge_responses.py --profile organism
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge gemini --max-cost 5 --limit 100
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge local --judge-model Qwen/Qwen3-14B
    uv run python src/scripts/04_judge_responses.py --profile qwen3_4b --judge openrouter --second-judge gemini

Reads results/persona_data.pkl; writes results/final_dataset_with_em_scores.pkl and results/em_rates.json (EM rate,
transfer, flip, coherence and mean score by dimension and facet, with 95% bootstrap intervals over prompts; missing
scores by reason). With a second judge also results/judge_agreement.json. What a judge said is kept in
results/judgements.jsonl: a stopped run continues there, and missing scores are asked for again by the next.
"""

from collections.abc import Sequence

import pandas as pd

from src.pipelines.persona_study import COLLECT, JUDGE
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, save_frame, save_json
from src.utils.cli import run_script
from src.utils.em_rates import em_rates, format_rates, rates_as_json
from src.utils.judging.judgement import missing_scores
from src.utils.judging.judges import score_frame


def main(arguments: Sequence[str]) -> None:
    run = begin_step(JUDGE, __doc__, arguments)
    if run is None:
        return
    settings = run.config.judging
    frame = load_frame(run.study.persona_data, made_by=COLLECT.name)
    judged = scored_by(run, frame, second=False)
    if settings.second_judge:
        from src.utils.judging.agreement import agreement_of, format_agreement

        other = scored_by(run, frame, second=True)
        agreement = agreement_of(judged, other, settings.em_threshold, settings.coherence_threshold)
        save_json(agreement, run.study.agreement, run.provenance)
        print(format_agreement(agreement))
    rates = em_rates(
        judged, settings.em_threshold, settings.coherence_threshold, settings.bootstrap_resamples, settings.seed
    )
    missing = missing_scores(judged)
    save_json(rates_as_json(rates) | {"missing": missing}, run.study.rates, run.provenance)
    save_frame(judged, run.study.scored, run.provenance)
    print(format_rates(rates))
    for reason, count in missing.items():
        print(f"without a score: {count:>5}  {reason}")
    print(f"{len(judged)} rows: {run.study.scored}")


def scored_by(run: StepRun, frame: pd.DataFrame, second: bool) -> pd.DataFrame:
    """The frame with the first or the second judge's scores."""
    settings = run.config.judging
    kind, model = settings.judge, settings.judge_model
    if second and settings.second_judge:
        kind, model = settings.second_judge, settings.second_judge_model
    return score_frame(frame, kind, model, settings, run.config.model, run.study.judgements, run.yes)


if __name__ == "__main__":
    run_script(main)
