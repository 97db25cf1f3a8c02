"""What it costs to cluster 885 x 2,560 and to test the clusterings, on how many cores, and what the tests then say.

    uv run python benchmarks/decomposition.py                               # in full: 1,000 draws, 100 of the others
    uv run python benchmarks/decomposition.py --jobs 2
    uv run python benchmarks/decomposition.py --draws 200 --draws-others 4  # a part of it, and the whole extrapolated

Gaussian rows with a power-law spectrum (participation ratio about 5), with or without planted clusters
(`--planted`, in units of the first component's standard deviation), reduced to 50 principal components. Seconds are of
the wall, `cpu` of this process (with several jobs: not of the others); `in full` scales both to the full number of
draws. Prints tables and writes results/benchmarks/decomposition.json.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from jaxtyping import Float, Float32, Int

from benchmarks.reports import REPORTS, write_report
from src.utils.decomposition.cluster_agreement import explain_clusters, length_quintiles
from src.utils.decomposition.cluster_nulls import NullSettings, cluster_tests
from src.utils.decomposition.clusterings import ClusterSettings, cluster_rows, principal_scores, validation
from src.utils.decomposition.gap_statistic import covariance_gap, uniform_gap
from src.utils.decomposition.rank import parallel_analysis

FULL = NullSettings()
PERMUTATIONS, FULL_ANALYSIS = 1000, 200
CLUSTERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=885)
    parser.add_argument("--features", type=int, default=2560)
    parser.add_argument("--components", type=int, default=50)
    parser.add_argument("--counts", type=int, nargs="+", default=[3, 4, 5, 7, 15, 50])
    parser.add_argument("--restarts", type=int, default=3, help="of k-means")
    parser.add_argument("--draws", type=int, default=FULL.draws, help="for k-means' silhouette and gap")
    parser.add_argument("--draws-others", type=int, default=FULL.draws_others)
    parser.add_argument("--analysis-draws", type=int, default=FULL_ANALYSIS, help="of parallel analysis")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--planted", type=float, default=0.0, help="distance of four planted clusters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    rng = np.random.default_rng(options.seed)
    matrix, truth = made_rows(options.rows, options.features, options.planted, rng)
    everything = ClusterSettings(counts=tuple(options.counts), restarts=options.restarts)
    kmeans = replace(everything, algorithms=("kmeans",))
    alone = NullSettings(options.draws, 1, 0, 0, options.seed, options.jobs)
    joint = NullSettings(options.draws_others, options.draws_others, seed=options.seed, jobs=options.jobs)
    measured: list[dict[str, Any]] = []

    def timed(what: str, make: Callable[[], Any], draws: int = 1, full: int = 1) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        made = make()
        seconds, cpu = time.perf_counter() - wall, time.process_time() - processor
        part = (full + 1) / (draws + 1)  # the data themselves are one more
        row = {"seconds": seconds, "cpu": cpu, "in_full": seconds * part, "cpu_in_full": cpu * part}
        measured.append({"what": what, "draws": draws, **row})
        print(f"{what:<44} {draws:>6}" + "".join(f"{value:>12.1f}" for value in row.values()), flush=True)
        return made

    print(f"{'':<44} {'draws':>6}{'seconds':>12}{'cpu':>12}{'in full':>12}{'cpu in full':>12}")
    scores = timed("principal components", lambda: principal_scores(matrix, options.components))
    found = timed("clusterings", lambda: cluster_rows(scores, everything))
    timed("internal indices", lambda: validation(scores, found))
    timed(
        "k-means against the covariance",
        lambda: cluster_tests({"": scores}, kmeans, alone),
        options.draws,
        FULL.draws,
    )
    tests = timed(
        "all algorithms and stability against it",
        lambda: cluster_tests({"": scores}, everything, joint),
        options.draws_others,
        FULL.draws_others,
    )
    box = timed(
        "the usual gap, against a box",
        lambda: uniform_gap(scores, everything, options.draws_others, options.seed, options.jobs),
        options.draws_others,
        FULL.draws_others,
    )
    targets = {
        "dimension": truth,
        "facet": truth * 3 + rng.integers(0, 3, options.rows),
        "keyed": rng.integers(-1, 2, options.rows),
        "length": length_quintiles(rng.integers(50, 900, options.rows)),
    }
    labels = {key: clustering.labels for key, clustering in found.items()}
    other = {key: rng.permutation(values) for key, values in labels.items()}
    explained = timed(
        "agreement, by permutation",
        lambda: explain_clusters(
            *(labels, tests.smallest_p(""), targets, other, np.linalg.norm(matrix, axis=1)),
            *(np.arange(options.rows), tests.shared_draws),
        ),
    )
    if options.analysis_draws:
        timed(
            "parallel analysis",
            lambda: parallel_analysis(matrix, options.seed, options.components, options.analysis_draws),
            options.analysis_draws,
            FULL_ANALYSIS,
        )
    total, cpu_total = (sum(row[name] for row in measured) for name in ("in_full", "cpu_in_full"))
    print(f"{'in full, with ' + str(options.jobs) + ' job(s)':<44} {'':>6}{'':>24}{total:>12.1f}{cpu_total:>12.1f}")

    ratio = participation_ratio(scores)
    significant = tests.table[tests.table["p_all"] < 0.05]
    gaps = {
        reference: table.loc[table["is_chosen"]].set_index("algorithm")["k"].to_dict()
        for reference, table in (("covariance", covariance_gap(tests.table)), ("box", box))
    }
    print(
        f"\nparticipation ratio {ratio:.1f}; significant (p_all < 0.05): {len(significant)} of {len(tests.table)} tests"
    )
    for reference, chosen in gaps.items():
        print(f"k chosen by the gap against the {reference}: {chosen}")
    for one in explained:
        print(f"{one.algorithm:<17} {one.k:>3}  {one.kind}")
    report = {
        "scikit_learn": sklearn.__version__,
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "settings": asdict(joint),
        "measured": measured,
        "seconds_in_full": total,
        "participation_ratio": ratio,
        "gap_chooses": gaps,
        "tests": tests.table.to_dict("records"),
        "explained": [{"algorithm": one.algorithm, "k": one.k, "kind": one.kind} for one in explained],
    }
    print(write_report(report, options.output, "decomposition"))


def made_rows(
    rows: int, features: int, planted: float, rng: np.random.Generator
) -> tuple[Float32[np.ndarray, "rows features"], Int[np.ndarray, " rows"]]:
    """Gaussian rows whose variances fall as 1 / place^1.4, and which of the planted clusters each is in."""
    matrix = rng.standard_normal((rows, features)) * np.arange(1, features + 1) ** -0.7
    truth = rng.integers(0, CLUSTERS, rows)
    matrix[:, :CLUSTERS] += planted * np.eye(CLUSTERS)[truth]
    return matrix.astype(np.float32), truth


def participation_ratio(scores: Float[np.ndarray, "rows components"]) -> float:
    """(sum of variances)^2 / sum of squared variances."""
    variances = scores.var(axis=0)
    return float(variances.sum() ** 2 / (variances**2).sum())


if __name__ == "__main__":
    main()
