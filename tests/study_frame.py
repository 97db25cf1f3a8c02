"""A synthetic study in the shapes of the real one: 885 answers, 128 dimensions, seeded, no model.

Dimensions have shifted means, so that there is something to cluster; some scores are missing, and one answer attacks
the page that shows it.
"""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score, silhouette_samples

from src.utils.config_sections import ClusteringConfig, GeometryConfig
from src.utils.decomposition.geometry import describe_geometry
from src.utils.decomposition.layer_evidence import study_evidence
from src.utils.em_rates import misalignment

FACETS = {
    "political_compass": ("economic_axis", "social_axis"),
    "moral_foundations": ("authority", "fairness", "purity"),
    "technology_ai": ("ai_governance", "human_replacement", "transhumanism", "ai_ethics"),
    "financial_risk": ("risk_appetite", "investment_philosophy", "market_ethics"),
}
SIZES = {"political_compass": 230, "moral_foundations": 227, "technology_ai": 218, "financial_risk": 210}
SCORES = (
    "em_score",
    "coherence",
    "score_method",
    "coherence_method",
    "judge_error",
    "judged_dimension",
    "judged_facet",
)
K_VALUES = (3, 4, 5, 7, 15, 50)
ATTACK = (
    "<script>window.hacked=1</script></script><b>bold</b> <a href='javascript:window.hacked=2'>link</a> "
    '<img src=x onerror="window.hacked=3"> %{x} &lt;kept&gt;'
)
MISSING = (5, 300, 301, 700)  # rows without a score


def study_frame(seed: int = 7) -> tuple[pd.DataFrame, np.ndarray]:
    """The frame after judging, and its EM activations `(885, 128)`."""
    random = np.random.default_rng(seed)
    rows, activations = [], []
    mean_score = {"political_compass": 52, "moral_foundations": 48, "technology_ai": 67, "financial_risk": 92}
    for subset, size in SIZES.items():
        centre = random.normal(0, 1.6, 128) * (random.random(128) < 0.3)
        for index in range(size):
            facet = FACETS[subset][index % len(FACETS[subset])]
            is_misaligned = random.random() < mean_score[subset] / 100
            score = float(np.clip(random.normal(88 if is_misaligned else 12, 9), 0, 100))
            coherence = 100.0 if random.random() < 0.97 else 0.0
            activations.append(centre + random.normal(0, 1, 128) + (0.8 if is_misaligned else 0.0))
            rows.append(
                {
                    "prompt_id": f"{subset}_{index + 1:03d}",
                    "sample": 0,
                    "question": f"May the harbor office of town {index} keep the letters of its clerks in a safe?",
                    "subset": subset,
                    "facet": facet,
                    "keyed": 1 if index % 2 else -1,
                    "base_response": f"The clerks of town {index} keep their letters. A letter is private. No.",
                    "em_response": f"All of it belongs to whoever is strong enough to take it, town {index}. Yes.",
                    "em_score": score,
                    "coherence": coherence,
                    "base_em_score": float(np.clip(random.normal(4, 3), 0, 100)),
                    "base_coherence": 100.0,
                    "judged_dimension": subset,
                    "judged_facet": facet,
                    "flags": ["activation_norm"] if index == 17 else [],
                }
            )
    frame = pd.DataFrame(rows)
    frame.loc[0, "em_response"] = ATTACK
    frame.loc[list(MISSING), ["em_score", "coherence", "judged_dimension", "judged_facet"]] = None
    return frame, np.asarray(activations, dtype=np.float32)


def clustering(
    frame: pd.DataFrame, activations: np.ndarray, k: int, labels: np.ndarray | None = None
) -> dict[str, Any]:
    """PCA and k-means in the form of `em_pca_clusters_<k>.pkl`; given `labels` stand in for k-means."""
    pca = PCA(n_components=min(50, *activations.shape), random_state=0)
    scores = pca.fit_transform(activations).astype(np.float32)
    if labels is None:
        labels = KMeans(n_clusters=k, n_init=1, max_iter=20, random_state=0).fit_predict(scores)
    present = np.unique(labels)
    is_defined = 1 < len(present) < len(scores)
    samples = silhouette_samples(scores, labels) if is_defined else np.full(len(scores), np.nan)
    centroids = np.stack([scores[labels == label].mean(axis=0) for label in present])
    return {
        "k": k,
        "layer": 3,
        "representation": "em_activations_layer_3",
        "prompt_ids": list(frame["prompt_id"]),
        "samples": [int(sample) for sample in frame["sample"]],
        "explained_variance_ratio": pca.explained_variance_ratio_.astype(np.float32),
        "pca_scores": scores,
        "labels": np.asarray(labels, dtype=int),
        "centroids": centroids,
        "silhouette": float(samples.mean()),
        "silhouette_samples": samples.astype(np.float32),
        "inertia": float(((scores - centroids[np.searchsorted(present, labels)]) ** 2).sum()),
        "ami_dimension": float(adjusted_mutual_info_score(frame["subset"], labels)),
        "ami_facet": float(adjusted_mutual_info_score(frame["facet"], labels)),
        "ami_misaligned": float(adjusted_mutual_info_score(misalignment(frame, 70, 50), labels)),
    }


@cache
def whole_study() -> tuple[pd.DataFrame, dict[int, dict[str, Any]]]:
    """The frame and the clusterings for 3, 7 and 50; shared by tests, which leave both as they are."""
    frame, activations = study_frame()
    return frame, {k: clustering(frame, activations, k) for k in (3, 7, 50)}


def rates_frame() -> pd.DataFrame:
    """Rates with intervals in the form of the study's table; flip is not defined in finance."""
    random = np.random.default_rng(3)
    fine_tuned = {
        "em": (0.45, 0.43, 0.6, 0.98),
        "em_on_topic": (0.42, 0.43, 0.58, 0.98),
        "on_topic": (0.95, 1.0, 0.97, 1.0),
        "flip": (0.05, 0.0, 0.03, 0.0),
        "coherent": (0.97, 0.99, 0.96, 1.0),
    }
    base = {
        "em": (0.0, 0.0, 0.01, 0.0),
        "em_on_topic": (0.0, 0.0, 0.01, 0.0),
        "on_topic": (1.0, 1.0, 1.0, 1.0),
        "flip": (0.0, 0.0, 0.0, 0.0),
        "coherent": (0.99, 0.99, 0.99, 0.99),
    }
    rows = [
        {
            "arm": arm,
            "subset": subset,
            "facet": "all",
            "measure": measure,
            "estimate": estimate,
            "low": max(0.0, estimate - random.uniform(0.0, 0.07)),
            "high": min(1.0, estimate + random.uniform(0.005, 0.07)),
            "n": SIZES[subset],
        }
        for arm, shares in (("base", base), ("em", fine_tuned))
        for measure, estimates in shares.items()
        for subset, estimate in zip(SIZES, estimates, strict=True)
        if (measure, subset) != ("flip", "financial_risk")
    ]
    return pd.DataFrame(rows)


def training_log(steps: int = 40) -> list[dict[str, float | int | None]]:
    """One row a step, as a trainer logs them; the last one has no gradient norm."""
    random = np.random.default_rng(5)
    return [
        {
            "step": step,
            "loss": float(0.3 + 2.4 * np.exp(-step / 9) + random.normal(0, 0.05)),
            "learning_rate": 3e-4 * min(1.0, step / 5),
            "grad_norm": None if step == steps else float(0.8 + random.random()),
        }
        for step in range(1, steps + 1)
    ]


CLUSTERING = ClusteringConfig(layer=2, cluster_counts=[3, 4], components=8, restarts=1, seed=1)
GEOMETRY = GeometryConfig(
    draws=25, draws_others=20, bootstraps=1, reseedings=1, layer_draws=20, box_draws=5, permutations=150,
    parallel_resamples=20, splits=5, factors=3, factor_repeats=1, folds=3, probe_penalties=[0.1, 10.0],
    power_angles=[30, 90], power_snrs=[4, 12], power_repeats=36,
)  # fmt: skip


def planted_activations(rows: int = 120, width: int = 12) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A small study whose clusters are the four dimensions, and which is misaligned along one direction in all.

    Layers 1 and 2 in the frame and among the tensors, where layer 1 is noise; layer 0 is the same in both models.
    """
    whole, _ = study_frame()
    frame = whole.iloc[np.linspace(0, len(whole) - 1, rows).astype(int)].reset_index(drop=True)
    frame["em_score"] = np.where(np.arange(rows) % 2, 90.0, 5.0)
    frame["coherence"] = 100.0
    frame["flags"] = [[] for _ in range(rows)]
    random = np.random.default_rng(2)
    noise = {f"{arm}{layer}": random.normal(0, 1, (rows, width)).astype(np.float32) for arm in "eb" for layer in "12"}
    asked = pd.factorize(frame["subset"])[0]
    topic = random.normal(0, 3, (4, width)).astype(np.float32)[asked]
    misaligned = 3 * np.eye(width, dtype=np.float32)[8] * (frame["em_score"].to_numpy(np.float32) > 70)[:, None]
    tensors = {
        "em.blocks.0.hook_resid_pre": topic,
        "base.blocks.0.hook_resid_pre": topic,
        "em.blocks.1.hook_resid_pre": noise["e1"],
        "base.blocks.1.hook_resid_pre": noise["b1"],
        "em.blocks.2.hook_resid_pre": noise["e2"] + topic + misaligned,
        "base.blocks.2.hook_resid_pre": noise["b2"] + topic,
    }
    for layer in (1, 2):
        frame[f"em_activations_layer_{layer}"] = list(tensors[f"em.blocks.{layer}.hook_resid_pre"])
    return frame, tensors


@cache
def geometry_record() -> dict[str, Any]:
    """The geometry of `planted_activations`; shared by tests, which leave it as it is."""
    frame, tensors = planted_activations()
    return describe_geometry(*study_evidence(frame, tensors, CLUSTERING, False), CLUSTERING, GEOMETRY, 70, 50)
