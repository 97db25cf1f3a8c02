"""A whole study, step by step; steps that are up to date are kept. Two studies: the persona's, and the safety judge's.

    uv run python run_full_pipeline.py                              # the persona, on the organism: offline, minutes
    uv run python run_full_pipeline.py --world separable --results-dir results/separable
    uv run python run_full_pipeline.py --profile qwen3_4b --memory 80gb --only 03
    uv run python run_full_pipeline.py --dry-run                    # what would run, and why
    uv run python run_full_pipeline.py --visualize-training --skip-open-ended    # the judge: data, training, evaluation
    uv run python run_full_pipeline.py --study judge --help         # the judge's options
    uv run python run_full_pipeline.py --study both

An option that only the judge has means the judge's study. The persona's ends with EM rates by dimension, cluster sizes
and the index of its pictures; the judge's with its accuracy beside two baselines and where its pages are; both with
time and memory of each step.
"""

from collections.abc import Sequence

from src.pipelines import judge_run, persona_run
from src.pipelines.judge_study import JUDGE_STEPS
from src.pipelines.option_words import choose_studies, share_out
from src.pipelines.runner import choose_steps, format_measured, names_of, plan, run_steps
from src.utils.cli import run_script

OPEN = {"persona": persona_run.open_persona_run, "judge": judge_run.open_judge_run}
OPTIONS = (persona_run.OPTIONS, judge_run.OPTIONS)


def main(arguments: Sequence[str]) -> None:
    judge_names = {name for step in JUDGE_STEPS for name in names_of(step)}
    studies = choose_studies(arguments, *OPTIONS, judge_names)
    shares = share_out(arguments, studies, *OPTIONS)
    runs = [OPEN[name](__doc__ or "", shares[name]) for name in studies]
    own = runs[0].own
    chosen = choose_steps(own.only, own.start, [step for run in runs for step in run.steps])
    parts = [(run, [step for step in run.steps if step in chosen]) for run in runs]
    for run, steps in parts:
        run.check(steps)
        for step in steps:
            if step.is_needed(run.study):
                step.refuse_overwrite(run.study, run.is_forced)
    measured = []
    for run, steps in parts:
        if own.dry_run:
            for decision in plan(steps, run.study, run.is_forced):
                print(f"{decision.step.name:<26} {'run ' if decision.runs else 'keep'}  {decision.reason}")
        else:
            measured += run_steps(steps, run.study, run.words, run.is_forced)
    if not own.dry_run:
        print("\n" + "\n\n".join([*(run.summarise() for run in runs), format_measured(measured)]) + "\n")
        for pages in filter(None, [run.pages() for run in runs]):
            print(pages)


if __name__ == "__main__":
    run_script(main)
