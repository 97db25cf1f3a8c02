"""Draw the study: verdict, scores, training, components, clusters, probes, steering, as HTML pages that open offline.

    uv run python src/visualizations/clusters_visualizations.py --profile organism
    uv run python src/visualizations/clusters_visualizations.py --standalone     # each page also as one file to send

Reads the artefacts of steps 2, 4, 5, 6 and 7 (steering and verdict are left out where those have not run); writes
cluster_plots/*.html and cluster_plots/index.html, which lists them in reading order. With --standalone the pages are
written to cluster_plots/exported, too, each with plotly.js (4.8 MB) in it, also where they are up to date.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from src.pipelines.persona_inputs import has_geometry, has_steering, has_verdict
from src.pipelines.persona_study import (
    CLUSTER,
    JUDGE,
    PICTURES,
    STEER,
    TRAINING_LOG,
    VERDICT,
    Study,
)
from src.pipelines.step_command import command_of
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_json, load_object, save_artifact
from src.utils.cli import parse_arguments, run_script
from src.utils.em_rates import rates_from_json, rates_table
from src.visualizations.export_figures import main as export
from src.visualizations.figure_page import page_files
from src.visualizations.palette import display_name
from src.visualizations.study_pages import study_pages

STANDALONE = "--standalone"


def main(arguments: Sequence[str]) -> None:
    run = begin_step(PICTURES, __doc__, [argument for argument in arguments if argument != STANDALONE])
    if run is not None:
        draw(run)
    if STANDALONE in arguments:
        parsed = parse_arguments(__doc__ or "", PICTURES.keys, [word for word in arguments if word != STANDALONE])
        export([str(parsed.plots_dir), "--format", "html"])


def draw(run: StepRun) -> None:
    study = run.study
    rates = rates_from_json(load_json(study.rates, made_by=JUDGE.name))
    frame = load_frame(study.clustered, made_by=CLUSTER.name)
    counts = run.config.clustering.cluster_counts
    clusterings = [load_object(study.clusters(k), made_by=CLUSTER.name) for k in counts]
    threshold = run.config.judging.em_threshold
    agreement = load_json(study.agreement, made_by=JUDGE.name) if run.config.judging.second_judge else None
    steering = load_json(study.steering_summary, made_by=STEER.name) if has_steering(study) else None
    verdict = load_json(study.verdict, made_by=VERDICT.name) if has_verdict(study) else None
    geometry = load_json(study.geometry, made_by=CLUSTER.name) if has_geometry(study) else None
    pages = study_pages(
        frame,
        rates,
        clusterings,
        training_log(run),
        command_of(PICTURES, study, names_paths=False),
        run.provenance.inputs,
        threshold,
        agreement,
        steering,
        verdict,
        geometry,
    )
    files = page_files(pages, study.plots_dir, readable(rates_table(rates)), headline(study))
    save_artifact(study.index, files, run.provenance, {"pages": [page.file_name for page in pages]})
    print(f"{len(pages)} pages: {study.index}")


def readable(table: list[list[str]]) -> list[list[str]]:
    """The table of rates with dimensions called as in the pictures."""
    header, *rows = table
    return [header, *([model, display_name(subset), *cells] for model, subset, *cells in rows)]


def training_log(run: StepRun) -> list[dict]:
    """The fine-tune's log, a row a step; empty where the profile names a published EM model."""
    if not run.study.has_own_finetune:
        return []
    lines = (run.study.finetuned / TRAINING_LOG).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def headline(study: Study) -> str:
    """Which models, and what the columns of the table say."""
    config, judging = study.config, study.config.judging
    base, tuned = Path(config.model.base).name, Path(study.em_model).name
    return (
        f"Base model {base}, EM model {tuned}, profile {config.profile}. EM rate: misalignment above "
        f"{judging.em_threshold:g} and coherence above {judging.coherence_threshold:g}; flip: money talk where "
        "something else was asked; in brackets 95% intervals over questions."
    )


if __name__ == "__main__":
    run_script(main)
