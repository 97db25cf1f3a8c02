"""PCA and k-means over the recorded activations, one clustering for each cluster count.

    uv run python src/scripts/05_pca_and_clustering.py --profile organism
    uv run python src/scripts/05_pca_and_clustering.py --layer 4 --representation em_minus_base_on_em

Reads results/final_dataset_with_em_scores.pkl; writes results/em_pca_clusters_<k>.pkl for each k and
results/final_dataset_with_em_scores_and_clusters.pkl with a column cluster_<k> (-1: the row has no usable activation).
"""

from collections.abc import Sequence

from tqdm import tqdm

from src.pipelines.persona_study import CLUSTER, JUDGE
from src.pipelines.step_run import begin_step
from src.utils.artifacts import load_frame, save_frame, save_object
from src.utils.cli import run_script
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
    save_frame(frame, run.study.clustered, run.provenance)
    print(f"{len(frame)} rows at layer {chosen.layer}, {chosen.name}: {run.study.clustered}")


if __name__ == "__main__":
    run_script(main)
