"""What the geometry's negative findings are worth: two tests of sub-personas on the data, and the power of each.

`subspaces`: do the dimensions' residuals vary in different directions? `clusters`: do residuals fall into clusters,
more than Gaussian data of the same covariance? Both leave out the dimensions' means, which are the topic. The verdict
rests on neither.
"""

import numpy as np
from jaxtyping import Float

from src.utils.config_sections import ClusteringConfig, GeometryConfig
from src.utils.decomposition.clusterings import ClusterSettings, kmeans, within_squares
from src.utils.decomposition.gaussian_null import gaussian_null
from src.utils.decomposition.inputs import Evidence
from src.utils.decomposition.plain_records import Record, or_reason
from src.utils.decomposition.planted import subspace_p_value, without_means
from src.utils.decomposition.power_curve import (
    ALPHA,
    POWER,
    Detector,
    Sweep,
    cluster_detector,
    power_curve,
    smallest_detectable,
    subspace_detector,
)
from src.utils.decomposition.rank import rotate_losslessly
from src.utils.errors import UserError

COMPONENTS = 10  # of residuals, in which planted clusters are looked for
PERMUTATIONS = 199  # behind the test of the data's own subspaces


def power_of(evidence: Evidence, clustering: ClusteringConfig, settings: GeometryConfig) -> Record:
    """`subspaces` and `clusters`: `p` of the data and how it came about; `curve` and `smallest`: `power_curve`'s.

    The data's own p rest on more permutations and draws (`draws_others`) than those of the planted data sets
    (`planted_draws`). With `power_draws` 0 clusters hold a `reason`, and are not in the curve.
    """
    if not settings.power_repeats:
        raise UserError("power: nothing was planted (--power-repeats 0)")
    dimensions, groups = evidence.frame["subset"].to_numpy(), evidence.frame["prompt_id"].to_numpy().astype(str)
    matrix, seed, permutations = evidence.matrix, clustering.seed, settings.power_permutations
    k = min(clustering.cluster_counts, key=lambda k: abs(k - 2 * len(np.unique(dimensions))))

    def clusters() -> Record:
        if not settings.power_draws:
            raise UserError("clusters: not planted (--power-draws 0)")
        draws, residuals = settings.draws_others, without_means(matrix, dimensions)
        p = residual_cluster_p(residuals, groups, seed, k, draws, stops_at=1.0)
        return {"p": p, "draws": draws, "planted_draws": settings.power_draws, "k": k, "components": COMPONENTS}

    p = subspace_p_value(matrix, dimensions, groups, seed, PERMUTATIONS)
    record = {"subspaces": {"p": p, "draws": PERMUTATIONS, "planted_draws": permutations}}
    record["clusters"] = or_reason(clusters)
    detectors: dict[str, Detector] = {"subspaces": subspace_detector(permutations)}
    if "reason" not in record["clusters"]:
        detectors["clusters"] = cluster_detector(
            lambda residuals, groups, seed: residual_cluster_p(residuals, groups, seed, k, settings.power_draws)
        )
    sweep = Sweep(settings.power_angles, settings.power_snrs, settings.power_repeats, seed, POWER, settings.jobs)
    curve = power_curve(matrix, dimensions, groups, detectors, sweep)
    about = {"power": POWER, "repeats": settings.power_repeats}
    return {**about, **record, "curve": curve, "smallest": smallest_detectable(curve)}


def residual_cluster_p(
    residuals: Float[np.ndarray, "rows features"],
    groups: np.ndarray,
    seed: int,
    k: int,
    draws: int,
    components: int = COMPONENTS,
    stops_at: float = ALPHA,
) -> float:
    """Does one k-means cut residuals into tighter pieces than Gaussian data of their covariance? Monte Carlo p.

    The statistic is -log W (`within_squares`) in the leading principal components. p = (1 + draws at least as large) /
    (1 + draws); where it can no longer come under `stops_at` drawing ends, and what it has come to is returned.
    """
    scores = rotate_losslessly(residuals)[:, :components]
    null, rng = gaussian_null(scores, groups), np.random.default_rng(seed)
    settings = ClusterSettings((k,), ("kmeans",), restarts=1, seed=seed)

    def tightness(rows: Float[np.ndarray, "rows kept"]) -> float:
        return -float(np.log(within_squares(rows, kmeans(rows, k, settings))))

    observed, larger = tightness(scores), 0
    for _ in range(draws):
        larger += tightness(null.draw(rng)) >= observed
        if (1 + larger) / (1 + draws) >= stops_at:
            break
    return (1 + larger) / (1 + draws)
