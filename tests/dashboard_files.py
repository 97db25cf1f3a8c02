"""What the dashboard's tests look at: a judge that was really watched, and a study saved as its steps save it."""

from pathlib import Path

from src.utils.artifacts import save_frame, save_json, save_object
from src.utils.decomposition.report import verdict_record
from src.utils.decomposition.verdict import Rule, decide, verdict_as_json
from src.utils.em_rates import em_rates, rates_as_json
from src.utils.manifests import Provenance
from tests.study_frame import whole_study
from tests.unit.test_steering_figures import summary
from tests.unit.test_verdict import planted

PATIENCE = 120  # seconds; a worker beside this one may be training


def write_watched_run(outputs: Path) -> Path:
    """Two epochs of a tiny judge with their pictures; the folder of the pictures."""
    from tests.watched_training import judge_model, trained_judge, watcher

    folder = outputs / "tiny"
    trained_judge(judge_model(), folder / "work", [watcher(folder, interval=1, validation=16, n_statistics=4)], count=8)
    return folder / "training_visualizations"


def write_persona_run(outputs: Path) -> Path:
    """Four steps of a tiny persona's fine-tune, watched at steps 1, 2 and 4, without pictures of its own."""
    from tests.unit.test_watching_persona import persona_watcher, tuned

    folder = outputs / "persona"
    tuned(folder / "work", [persona_watcher(folder)])
    return outputs


def write_results(results: Path) -> Path:
    """Frame, rates, one clustering, steering and verdict under the organism's profile."""

    def made(step: str) -> Provenance:
        return Provenance(step, "organism", "entangled")

    frame, clusterings = whole_study()
    frame = frame.assign(
        cluster_3=clusterings[3]["labels"], base_judged_dimension=frame["subset"], base_judged_facet=frame["facet"]
    )
    rates = em_rates(frame, 70, 50, 100, 0)
    save_json(rates_as_json(rates) | {"missing": {}}, results / "em_rates.json", made("04_judge_responses"))
    save_frame(frame, results / "final_dataset_with_em_scores.pkl", made("04_judge_responses"))
    save_frame(frame, results / "final_dataset_with_em_scores_and_clusters.pkl", made("05_pca_and_clustering"))
    save_object(clusterings[3], results / "em_pca_clusters_3.pkl", made("05_pca_and_clustering"))
    save_json(summary(), results / "steering_summary.json", made("06_steer_personas"))
    verdict = decide({"controls": planted(0.8, 0.6), "steering": planted(0.7, 0.5)}, Rule(), 200, 20, 0)
    smallest = dict.fromkeys(verdict_as_json(verdict)["lines"], 0.2)
    record = verdict_record(verdict, smallest, rates_as_json(rates)["rates"], "organism", "entangled")
    save_json(record, results / "decomposition_verdict.json", made("07_decide_verdict"))
    return results
