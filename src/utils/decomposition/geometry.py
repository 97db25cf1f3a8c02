"""What activations look like: rank, clusters, factors and probes, each beside its null, as one plain record.

Geometry does not decide whether a persona comes apart (`verdict` does, from causal evidence): it says what there is,
and what it is about. A part that the data do not allow holds a `reason` in place of numbers. How the record reads is
left to `geometry_report`, what it looks like to the figure modules.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from joblib import Parallel, delayed

from src.utils.config_sections import ClusterAlgorithm, ClusteringConfig, GeometryConfig
from src.utils.decomposition.answer_map import tsne_map, ward_tree
from src.utils.decomposition.cluster_agreement import explain_clusters, length_quintiles
from src.utils.decomposition.cluster_nulls import NullSettings, NullTests, cluster_tests
from src.utils.decomposition.clusterings import (
    BY_COUNT,
    BY_DENSITY,
    ClusterSettings,
    chosen_counts,
    cluster_rows,
    principal_scores,
    threads,
    validation,
)
from src.utils.decomposition.evidence_choice import EvidenceChoice, describe_choice, on_training_rows, prepared
from src.utils.decomposition.factorisations import compare_factorisations, summarise
from src.utils.decomposition.gap_statistic import covariance_gap, uniform_gap
from src.utils.decomposition.geometry_power import power_of
from src.utils.decomposition.inputs import Evidence
from src.utils.decomposition.layer_evidence import restricted
from src.utils.decomposition.plain_records import Record, as_plain, fields_of, or_reason
from src.utils.decomposition.probe_features import Prepare
from src.utils.decomposition.probes import Nesting, ProbeRows, compare_probes, cross_dimension_transfer
from src.utils.decomposition.rank import half_agreement, parallel_analysis, participation_ratio
from src.utils.em_rates import misalignment, outcomes
from src.utils.errors import UserError

PARTS = ("rank", "clusters", "power", "layers", "factorisations", "probes", "tree", "tsne")
LONGEST_FIRST = ("probes", "factorisations", "tsne", "rank", "tree")
SHARED_DRAWS = ("clusters", "power", "layers")  # their draws are shared out by themselves
BAND = (5, 95)  # percentiles of a null that are drawn


def describe_geometry(
    evidence: Evidence,
    layers: Mapping[str, Evidence],
    clustering: ClusteringConfig,
    settings: GeometryConfig,
    em_threshold: float,
    coherence_threshold: float,
    on_part: Callable[[str], object] = lambda part: None,
    choice: EvidenceChoice | None = None,
) -> Record:
    """Everything in `PARTS` and the `evidence` it is about, as plain data: NaN and infinity are None.

    `rank`: `rank_of`. `clusters`: `tested_clusters`. `power`: `power_of`. `layers`: for each of `layers` its rank, and
    its clusterings by `layer_algorithms` tested jointly. `factorisations`: rows of `factorisations.summarise`.
    `probes`: `probed`, an answer being misaligned as in the EM rate. `tree`, `tsne`: `answer_map`. `on_part` is told
    each when it is done.
    `choice` says what the evidence is and what is done to it, when it is not the configured layer as it is: rank,
    clusters and maps are of rows preprocessed together, probes preprocess on training rows alone, factorisations, whose
    held-out part is to be rebuilt, and transfer between dimensions take the rows as recorded.
    `settings.jobs` processes of one thread share the work; one seed (`clustering.seed`) gives one record, however many.
    """
    choice = choice or EvidenceChoice(
        clustering.representation, (clustering.layer,), drop_flagged=settings.drop_flagged, centre=clustering.centre
    )
    recorded, evidence = evidence, prepared(evidence, choice.preprocessing)
    layers = {name: prepared(one, choice.preprocessing) for name, one in layers.items()}
    prepare = on_training_rows(choice.preprocessing)
    scores = principal_scores(evidence.matrix, clustering.components, clustering.centre)
    groups = prompts_of(evidence)
    made: dict[str, Callable[[], Any]] = {
        "rank": lambda: rank_of(evidence, clustering, settings),
        "clusters": lambda: tested_clusters(evidence, clustering, settings, em_threshold, coherence_threshold),
        "power": lambda: power_of(evidence, clustering, settings),
        "layers": lambda: tested_layers(layers, clustering, settings),
        "factorisations": lambda: {
            "table": summarise(
                compare_factorisations(
                    *(recorded.matrix, groups, settings.factors, clustering.seed),
                    folds=settings.folds,
                    repeats=settings.factor_repeats,
                )
            )
        },
        "probes": lambda: probed(recorded, settings, clustering.seed, em_threshold, coherence_threshold, prepare),
        "tree": lambda: ward_tree(scores, evidence.frame["subset"].to_numpy()),
        "tsne": lambda: {
            "prompt_ids": evidence.frame["prompt_id"],
            "samples": evidence.frame["sample"],
            **tsne_map(scores, clustering.seed),
        },
    }
    about = {
        **describe_choice(choice),
        "layer": choice.layers[0] if choice.layers else 0,
        "rows": len(evidence.rows),
        "prompts": len(np.unique(groups)),
        "features": evidence.matrix.shape[1],
        "components": scores.shape[1],
    }
    record = {"evidence": as_plain(about)}
    for part in SHARED_DRAWS:
        record[part] = finished(made[part])
        on_part(part)
    tasks = (delayed(finished)(made[part]) for part in LONGEST_FIRST)
    for part, done in zip(LONGEST_FIRST, Parallel(n_jobs=settings.jobs, return_as="generator")(tasks), strict=True):
        record[part] = done
        on_part(part)
    return {name: record[name] for name in ("evidence", *PARTS)}


def finished(make: Callable[[], Any]) -> Any:
    """A part as plain data, made on one thread; inputs were checked once, where the evidence was built."""
    with threads().limit(limits=1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
        return as_plain(or_reason(make))


def rank_of(evidence: Evidence, clustering: ClusteringConfig, settings: GeometryConfig) -> Record:
    """`parallel_analysis`, `participation` and `half_agreement`: the fields of what `rank` gives."""
    matrix, groups, seed = evidence.matrix, prompts_of(evidence), clustering.seed

    def parallel() -> Record:
        found = parallel_analysis(matrix, seed, clustering.components, settings.parallel_resamples)
        return fields_of(found) | {"resamples": settings.parallel_resamples}

    return {
        "parallel_analysis": or_reason(parallel),
        "participation": or_reason(lambda: fields_of(participation_ratio(matrix, groups, seed))),
        "half_agreement": or_reason(lambda: fields_of(half_agreement(matrix, groups, seed, splits=settings.splits))),
    }


def tested_clusters(
    evidence: Evidence,
    clustering: ClusteringConfig,
    settings: GeometryConfig,
    em_threshold: float,
    coherence_threshold: float,
) -> Record:
    """Every algorithm and k against its nulls, and what each clustering is.

    `tests`: the rows of `cluster_tests` with the null's 5th and 95th percentile; `gap`: both references of
    `gap_statistic`; `indices` and `chosen`: `clusterings.validation` and `chosen_counts`; `explanations`:
    `explain_clusters` with dimension, facet, keying, length, misalignment and the base model's clusters.
    `counts_left_out` are the k that are too many to resample. p-values are corrected over k, algorithm and statistic at
    this layer, which the configuration names; those of `tested_layers` over layers, too.
    """
    groups, frame, seed = prompts_of(evidence), evidence.frame, clustering.seed
    scores = principal_scores(evidence.matrix, clustering.components, clustering.centre)
    chosen, left_out = cluster_settings(settings.algorithms, clustering, len(np.unique(groups)))
    nulls = NullSettings(
        settings.draws, settings.draws_others, settings.bootstraps, settings.reseedings, seed, settings.jobs
    )
    found = cluster_rows(scores, chosen)
    indices = validation(scores, found)
    tests = cluster_tests({evidence.name: scores}, chosen, nulls, groups)
    gaps = []
    if chosen.counts and set(chosen.algorithms) & set(BY_COUNT):
        gaps = [covariance_gap(tests.table), uniform_gap(scores, chosen, settings.box_draws, seed, settings.jobs)]
    targets = {
        "dimension": frame["subset"].to_numpy(),
        "facet": frame["facet"].to_numpy(),
        "keyed": frame["keyed"].to_numpy(),
        "length": length_quintiles(frame["length"].to_numpy()),
        "misaligned": misalignment(frame, em_threshold, coherence_threshold),
    }
    base = cluster_rows(principal_scores(evidence.base, clustering.components, clustering.centre), chosen)
    explanations = explain_clusters(
        {key: one.labels for key, one in found.items()},
        tests.smallest_p(evidence.name),
        targets,
        {key: one.labels for key, one in base.items()},
        np.linalg.norm(evidence.matrix, axis=1),
        groups,
        tests.shared_draws,
        settings.permutations,
        seed,
    )
    return {
        "counts": chosen.counts,
        "counts_left_out": left_out,
        "draws": {"kmeans": settings.draws, "others": settings.draws_others},
        "tests": with_band(tests),
        "gap": pd.concat(gaps).to_dict("records") if gaps else [],
        "indices": indices,
        "chosen": chosen_counts(scores, indices, chosen) if gaps else [],
        "explanations": [fields_of(one) for one in explanations],
    }


def tested_layers(layers: Mapping[str, Evidence], clustering: ClusteringConfig, settings: GeometryConfig) -> Record:
    """`rank` by layer, and `tests` of all layers' clusterings, drawn and corrected jointly; stability is left out."""
    if not layers:
        alike = "EM and base model differ at none of the frame's; collect later ones"
        raise UserError("the embeddings are one place" if clustering.site == "embed" else alike)
    groups = prompts_of(next(iter(layers.values())))
    chosen, _ = cluster_settings(settings.layer_algorithms, clustering, len(np.unique(groups)))
    nulls = NullSettings(settings.layer_draws, settings.layer_draws, 0, 0, clustering.seed, settings.jobs)
    scores = {
        name: principal_scores(one.matrix, clustering.components, clustering.centre) for name, one in layers.items()
    }
    return {
        "names": list(layers),
        "rank": {name: rank_of(one, clustering, settings) for name, one in layers.items()},
        "tests": with_band(cluster_tests(scores, chosen, nulls, groups)),
    }


def probed(
    evidence: Evidence,
    settings: GeometryConfig,
    seed: int,
    em_threshold: float,
    coherence_threshold: float,
    prepare: Prepare | None = None,
) -> Record:
    """`dimension` and `misaligned`: the `table` of `compare_probes`; `transfer`: that of `cross_dimension_transfer`.

    Misalignment is probed over judged answers, the dimension over all (and not where `prepare` sees it).
    What cannot be probed holds its `reason`.
    """
    if not settings.probes:
        raise UserError("probes: switched off (--no-probes)")
    nesting = Nesting(settings.folds, max(2, settings.folds - 1), tuple(sorted(settings.probe_penalties)), seed)
    hits, is_judged = outcomes(evidence.frame, "", "em", em_threshold, coherence_threshold)
    judged = restricted(evidence, evidence.rows[is_judged])
    misaligned, dimensions = hits[is_judged], judged.frame["subset"].to_numpy()

    def compared(one: Evidence, target: np.ndarray) -> Record:
        frame = one.frame
        columns = (prompts_of(one), frame["subset"].to_numpy(), frame["facet"].to_numpy())
        rows = ProbeRows(*columns, frame["question"].tolist(), frame["em_response"].tolist())
        return {"rows": len(frame), "table": compare_probes(one.matrix, one.base, target, rows, nesting, prepare)}

    said = np.where(misaligned, "misaligned", "aligned")
    return {
        "dimension": or_reason(lambda: compared(evidence, evidence.frame["subset"].to_numpy().astype(str))),
        "misaligned": or_reason(lambda: compared(judged, said)),
        "transfer": or_reason(
            lambda: {
                "table": cross_dimension_transfer(judged.matrix, misaligned, dimensions, prompts_of(judged), nesting)
            }
        ),
    }


def cluster_settings(
    algorithms: Sequence[ClusterAlgorithm], clustering: ClusteringConfig, prompts: int
) -> tuple[ClusterSettings, list[int]]:
    """What is clustered, and the k that are too many for a bootstrap of the prompts (`cluster_nulls.check_draws`)."""
    most = prompts // 2
    counts = tuple(k for k in clustering.cluster_counts if k < most)
    left_out = [k for k in clustering.cluster_counts if k >= most]
    if not counts and not set(algorithms) & set(BY_DENSITY):
        raise UserError(f"clusters: none of k = {left_out} is under half of {prompts} prompts; choose smaller ones")
    chosen = ClusterSettings(counts, tuple(dict.fromkeys(algorithms)), clustering.restarts, clustering.seed)
    return chosen, left_out


def with_band(tests: NullTests) -> pd.DataFrame:
    """The table of tests and the percentiles of each null between which it is drawn."""
    low, high = np.nanpercentile(tests.null, BAND, axis=0)
    return tests.table.assign(null_low=low, null_high=high)


def prompts_of(evidence: Evidence) -> np.ndarray:
    return evidence.frame["prompt_id"].to_numpy().astype(str)
