"""Score every answer of step 3: how misaligned, how coherent, and what it talks about.

    uv run python src/scripts/04_judge_responses.py --profile organism

Reads results/persona_data.pkl; writes results/final_dataset_with_em_scores.pkl and results/em_rates.json (EM rate,
transfer, flip and coherence by dimension, with 95% bootstrap intervals over prompts).
"""

from collections.abc import Sequence

from tqdm import tqdm

from src.pipelines.persona_study import COLLECT, JUDGE
from src.pipelines.step_run import begin_step
from src.utils.artifacts import load_frame, save_frame, save_json
from src.utils.cli import run_script
from src.utils.em_rates import em_rates, format_rates, rates_as_json
from src.utils.judging import judge_frame
from src.utils.organism.folder import grammar_of
from src.utils.organism.grammar import load_grammar
from src.utils.organism.judge import OrganismJudge


def main(arguments: Sequence[str]) -> None:
    run = begin_step(JUDGE, __doc__, arguments)
    if run is None:
        return
    settings = run.config.judging
    frame = load_frame(run.study.persona_data, made_by=COLLECT.name)
    judge = OrganismJudge(load_grammar(grammar_of(run.config.model.base)))
    with tqdm(total=2 * len(frame), unit="answer", desc=f"judge {judge.name}") as progress:
        judged = judge_frame(frame, judge, progress.update)
    rates = em_rates(
        judged, settings.em_threshold, settings.coherence_threshold, settings.bootstrap_resamples, settings.seed
    )
    save_json(rates_as_json(rates), run.study.rates, run.provenance)
    save_frame(judged, run.study.scored, run.provenance)
    print(format_rates(rates))
    print(f"{len(judged)} rows: {run.study.scored}")


if __name__ == "__main__":
    run_script(main)
