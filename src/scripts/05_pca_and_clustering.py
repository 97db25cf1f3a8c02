"""PCA and k-means over the recorded activations, and what of it is more than covariance, topic and chance.

    uv run python src/scripts/05_pca_and_clustering.py --profile organism
    uv run python src/scripts/05_pca_and_clustering.py --layer 4 --representation em_minus_base_on_em --jobs 2
    uv run python src/scripts/05_pca_and_clustering.py --layers-jointly 2 3 4 --remove-dimension-means --whiten
    uv run python src/scripts/05_pca_and_clustering.py --no-centre
    uv run python src/scripts/05_pca_and_clustering.py --site attn_out --drop-flagged --token-level

Reads results/final_dataset_with_em_scores.pkl and persona_data.safetensors (--token-level: persona_tokens/ too); writes
results/em_pca_clusters_<k>.pkl for each k, results/decomposition_geometry.json (rank, clusterings against their nulls,
power on planted sub-personas, factorisations, probes), and results/final_dataset_with_em_scores_and_clusters.pkl with a
column cluster_<k> (-1: the row has no usable activation). What the clusters are of is said in their manifests and in
the record's `evidence`.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from src.pipelines.persona_study import CLUSTER, COLLECT, JUDGE
from src.pipelines.step_run import StepRun, begin_step
from src.utils.artifacts import load_frame, load_tensors, save_frame, save_json, save_object
from src.utils.cli import run_script
from src.utils.decomposition.clusterings import ClusterSettings
from src.utils.decomposition.evidence_choice import clustered
from src.utils.decomposition.geometry import PARTS, describe_geometry
from src.utils.decomposition.geometry_report import format_geometry
from src.utils.decomposition.inputs import Evidence
from src.utils.decomposition.layer_evidence import chosen_evidence, configured_choice
from src.utils.decomposition.plain_records import or_reason
from src.utils.em_rates import misalignment
from src.utils.pca_clustering import check_counts, cluster_all
from src.utils.progress import progress_bar


def main(arguments: Sequence[str]) -> None:
    run = begin_step(CLUSTER, __doc__, arguments)
    if run is None:
        return
    settings, data = run.config.clustering, run.study.persona_data
    frame = load_frame(run.study.scored, made_by=JUDGE.name)
    tensors = load_tensors(data.with_suffix(".safetensors"), COLLECT.name, of=data)
    choice = configured_choice(settings, run.config.geometry.drop_flagged)
    evidence, layers = chosen_evidence(frame, tensors, choice)
    chosen = clustered(frame, evidence, choice)
    counts = tuple(settings.cluster_counts)
    check_counts(chosen, counts, run.study.scored)
    judging = run.config.judging
    targets = {
        "dimension": frame["subset"].to_numpy(),
        "facet": frame["facet"].to_numpy(),
        "misaligned": misalignment(frame, judging.em_threshold, judging.coherence_threshold),
    }
    fits = ClusterSettings(counts, restarts=settings.restarts, seed=settings.seed)
    with progress_bar("cluster", "k", len(counts)) as progress:
        results = cluster_all(
            frame, chosen, settings.components, fits, targets, lambda k: progress.update(), settings.centre
        )
    labelled = frame
    for k, result in results.items():
        save_object(result, run.study.clusters(k), run.provenance)
        labelled = labelled.assign(**{f"cluster_{k}": result["labels"]})
        sizes = labelled[f"cluster_{k}"].value_counts().tolist()
        print(
            f"k = {k:>2}: silhouette {result['silhouette']:.3f}, AMI with dimension {result['ami_dimension']:.2f}, "
            f"with facet {result['ami_facet']:.2f}, with being misaligned {result['ami_misaligned']:.2f}, "
            f"sizes {' '.join(map(str, sizes))}"
        )
    geometry = geometry_of(run, evidence, layers)
    if settings.token_level:
        geometry["tokens"] = or_reason(lambda: tokens_of(run, frame))
    save_json(geometry, run.study.geometry, run.provenance)
    print(format_geometry(geometry))
    save_frame(labelled, run.study.clustered, run.provenance)
    print(f"{len(frame)} rows, {chosen.name}: {run.study.clustered}")


def geometry_of(run: StepRun, evidence: Evidence, layers: dict[str, Evidence]) -> dict[str, Any]:
    """The record of `describe_geometry` for the configured evidence, and for the frame's layers."""
    judging, settings, clustering = run.config.judging, run.config.geometry, run.config.clustering
    thresholds = (judging.em_threshold, judging.coherence_threshold)
    choice = configured_choice(clustering, settings.drop_flagged)
    with progress_bar("geometry", "part", len(PARTS)) as progress:

        def finish(part: str) -> None:
            progress.set_postfix_str(part, refresh=False)
            progress.update()

        return describe_geometry(evidence, layers, clustering, settings, *thresholds, finish, choice)


def tokens_of(run: StepRun, frame: pd.DataFrame) -> dict[str, Any]:
    """The record of `describe_tokens` at the same site and layers."""
    from src.utils.decomposition.token_geometry import describe_tokens
    from src.utils.decomposition.token_inputs import token_evidence
    from src.utils.token_shards import TokenReader

    settings = run.config.clustering
    layers = [] if settings.site == "embed" else settings.layers_jointly or [settings.layer]
    reader = TokenReader(run.study.persona_tokens)
    drop = run.config.geometry.drop_flagged
    evidence = token_evidence(frame, reader, settings.representation, layers, drop, settings.site)
    return describe_tokens(evidence, frame, settings.components, settings.cluster_counts, settings.seed)


if __name__ == "__main__":
    run_script(main)
