"""PCA and k-means over the recorded activations, and what of it is more than covariance, topic and chance.

    uv run python src/scripts/05_pca_and_clustering.py --profile organism
    uv run python src/scripts/05_pca_and_clustering.py --layer 4 --representation em_minus_base_on_em --jobs 2

Reads results/final_dataset_with_em_scores.pkl and persona_data.safetensors; writes results/em_pca_clusters_<k>.pkl for
each k, results/decomposition_geometry.json (rank, clusterings against their nulls, factorisations, probes), and
results/final_dataset_with_em_scores_and_clusters.pkl with a column cluster_<k> (-1: the row has no usable activation).
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from tqdm import tqdm

from src.pipelines.persona_study import CLUSTER, COLLECT, JUDGE
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_tensors, save_frame, save_json, save_object
from src.utils.cli import run_script
from src.utils.decomposition.geometry import PARTS, describe_geometry
from src.utils.decomposition.geometry_report import format_geometry
from src.utils.decomposition.layer_evidence import study_evidence
from src.utils.pca_clustering import cluster_all, representation


def main(arguments: Sequence[str]) -> None:
    run = begin_step(CLUSTER, __doc__, arguments)
    if run is None:
        return
    settings = run.config.clustering
    frame = load_frame(run.study.scored, made_by=JUDGE.name)
    chosen = representation(frame, settings.representation, settings.layer)
    counts = settings.cluster_counts
    with tqdm(total=len(counts), unit="k", desc="cluster") as progress:
        results = cluster_all(
            frame, chosen, settings.components, counts, settings.restarts, settings.seed, lambda k: progress.update()
        )
    for k, result in results.items():
        save_object(result, run.study.clusters(k), run.provenance)
        frame[f"cluster_{k}"] = result["labels"]
        sizes = frame[f"cluster_{k}"].value_counts().tolist()
        print(
            f"k = {k:>2}: silhouette {result['silhouette']:.3f}, AMI with dimension {result['ami_dimension']:.2f}, "
            f"with facet {result['ami_facet']:.2f}, sizes {' '.join(map(str, sizes))}"
        )
    geometry = geometry_of(run, load_frame(run.study.scored, made_by=JUDGE.name))
    save_json(geometry, run.study.geometry, run.provenance)
    print(format_geometry(geometry))
    save_frame(frame, run.study.clustered, run.provenance)
    print(f"{len(frame)} rows at layer {chosen.layer}, {chosen.name}: {run.study.clustered}")


def geometry_of(run: StepRun, frame: pd.DataFrame) -> dict[str, Any]:
    """The record of `describe_geometry` for the configured representation and layer, and for the frame's layers."""
    data, judging, settings = run.study.persona_data, run.config.judging, run.config.geometry
    tensors = load_tensors(data.with_suffix(".safetensors"), COLLECT.name, of=data)
    evidence, layers = study_evidence(frame, tensors, run.config.clustering, settings.drop_flagged)
    thresholds = (judging.em_threshold, judging.coherence_threshold)
    with tqdm(total=len(PARTS), unit="part") as progress:

        def begin(part: str) -> None:
            progress.set_description(f"geometry: {part}")
            progress.update()

        return describe_geometry(evidence, layers, run.config.clustering, settings, *thresholds, begin)


if __name__ == "__main__":
    run_script(main)
