"""Clusters of 729 / 148 / 8 of 885: how norm outliers and topic alone give such sizes, on an organism.

    uv run python benchmarks/published_pattern.py
    uv run python benchmarks/published_pattern.py --results-dir results/separable --layer 3 --factor 6

Reads the activations of step 3 and runs the original's procedure (PCA to 50 components, k-means, k = 3) on four sets of
rows: the EM model's as recorded, and with eight rows made longer; the base model's with the same eight, where there is
no misaligned persona; and Gaussian rows about their facets' means with the eight, where there is nothing but topic.
Prints sizes, norms and agreement with the topic, with being misaligned and with the published sizes, and writes
results/benchmarks/published_pattern.json and cluster_plots/published_pattern/index.html.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.pipelines.persona_study import COLLECT, JUDGE
from src.utils.artifacts import load_frame, load_tensors, save_artifact, save_json
from src.utils.cli import run_script
from src.utils.config import PROJECT_ROOT
from src.utils.decomposition.inputs import build_evidence
from src.utils.decomposition.outlier_pattern import PUBLISHED, clustered_pattern, plant_outliers, topic_alone
from src.utils.decomposition.plain_records import as_plain
from src.utils.manifests import Provenance, hash_inputs, read_manifest
from src.visualizations.figure_page import FigurePage, page_files
from src.visualizations.outlier_pattern_figure import outlier_pattern, sizes

SENTENCE = (
    "k-means gives a few long rows a cluster of their own and cuts the rest along the topic: with eight planted "
    "outliers the base model, which has no misaligned persona, shows sizes like those that were published (729, 148 "
    "and 8 of 885)."
)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=PROJECT_ROOT / "results", help="of a finished step 4")
    parser.add_argument("--plots-dir", type=Path, help="default: published_pattern beside the study's pictures")
    parser.add_argument("--layer", type=int, default=5, help="residual stream into this block, hidden_states[layer]")
    parser.add_argument("--outliers", type=int, default=PUBLISHED[-1], help="rows that are made longer")
    parser.add_argument("--factor", type=float, default=4.0, help="how many times as long")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    data, scored = options.results_dir / "persona_data.pkl", options.results_dir / "final_dataset_with_em_scores.pkl"
    frame = load_frame(scored, made_by=JUDGE.name)
    tensors = load_tensors(data.with_suffix(".safetensors"), COLLECT.name, of=data)
    evidence = build_evidence(frame, tensors, "em", [options.layer])
    found = patterns(evidence, options.outliers, options.factor, options.seed)
    print(table(found))

    manifest = read_manifest(scored)
    provenance = Provenance(
        step="published_pattern",
        profile=manifest.profile if manifest else "unknown",
        world=manifest.world if manifest else None,
        config={name: getattr(options, name) for name in ("layer", "outliers", "factor")},
        seeds={"published_pattern": options.seed},
        inputs=hash_inputs({scored.name: scored, data.name: data}),
    )
    kept = ("clusters", "agreement")
    arms = {name: {key: one[key] for key in kept} for name, one in found.items()}
    report = options.results_dir / "benchmarks" / "published_pattern.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    save_json(as_plain({"published": PUBLISHED, "evidence": evidence.name, "arms": arms}), report, provenance)
    is_main = options.results_dir.absolute() == PROJECT_ROOT / "results"
    plots = options.plots_dir or (PROJECT_ROOT if is_main else options.results_dir) / "cluster_plots/published_pattern"
    page = FigurePage(
        "published_pattern.html",
        "Three clusters without a persona",
        SENTENCE,
        outlier_pattern(found).update_layout(
            title_text=f"{len(evidence.rows):,} answers · layer {options.layer} · k = 3 · outliers: {options.outliers} "
            f"rows, {options.factor:g} times as long"
        ),
        f"uv run python benchmarks/published_pattern.py --layer {options.layer} --factor {options.factor:g}",
        provenance.inputs,
    )
    plots.mkdir(parents=True, exist_ok=True)
    save_artifact(plots / "index.html", page_files([page], plots), provenance, {"pages": [page.file_name]})
    print(report, plots / page.file_name, sep="\n")


def patterns(evidence: Any, outliers: int, factor: float, seed: int) -> dict[str, dict[str, Any]]:
    """`clustered_pattern` of each arm."""
    frame = evidence.frame
    targets = {"dimension": frame["subset"].to_numpy(), "facet": frame["facet"].to_numpy()}
    targets["misaligned"] = (frame["em_score"] > 50).to_numpy()
    em, base = evidence.matrix.astype(np.float64), evidence.base.astype(np.float64)
    topic = topic_alone(base, targets["facet"], np.random.default_rng([seed, 1]))
    arms = {"EM model, as recorded": (em, 1.0), "EM model, outliers": (em, factor)}
    arms |= {"base model, outliers": (base, factor), "topic alone, outliers": (topic, factor)}
    found = {}
    for name, (matrix, times) in arms.items():
        rows, is_planted = plant_outliers(matrix, outliers, times, np.random.default_rng(seed))
        found[name] = clustered_pattern(rows, is_planted, targets, seed=seed)
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """A line an arm."""
    lines = [f"{'published':<24} {' / '.join(map(str, PUBLISHED)):<16}"]
    lines += [
        f"{'':<24} {'sizes':<16} {'median norms':<22} outliers in each   AMI of the rest: dimension facet misaligned"
    ]
    for name, one in found.items():
        norms = " / ".join(f"{cluster['norm']:.0f}" for cluster in one["clusters"])
        planted = " / ".join(str(cluster["outliers"]) for cluster in one["clusters"])
        agreement = "  ".join(f"{value:.2f}" for value in one["agreement"].values())
        lines.append(f"{name:<24} {sizes(one):<16} {norms:<22} {planted:<18} {agreement}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
