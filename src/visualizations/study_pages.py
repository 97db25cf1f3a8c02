"""The pages of the persona study, in reading order: what each is called, and what to see in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from src.visualizations.agreement_figures import agreement_page
from src.visualizations.cluster_figures import cluster_map, cluster_overview, cluster_profile, silhouette_plot
from src.visualizations.component_figures import pca_plane, pca_space, scree_plot, tsne_plane
from src.visualizations.dendrogram_figure import ward_dendrogram
from src.visualizations.figure_page import FigurePage
from src.visualizations.geometry_figures import cluster_explanations, cluster_tests
from src.visualizations.interchange_figures import interchange_matrix
from src.visualizations.layer_statistics import layer_statistics
from src.visualizations.power_figures import power_curve
from src.visualizations.probe_figures import factorisations, probe_scores
from src.visualizations.score_figures import em_rates, em_score_distribution, training_curve
from src.visualizations.steering_figures import cross_effects, dose_response
from src.visualizations.verdict_figures import verdict_card
from src.visualizations.verdict_report import verdict_words


def study_pages(
    frame: pd.DataFrame,
    rates: pd.DataFrame,
    clusterings: Sequence[Mapping[str, Any]],
    training_log: Sequence[Mapping[str, Any]],
    command: str,
    inputs: Mapping[str, str],
    em_threshold: float,
    agreement: Mapping[str, Any] | None = None,
    steering: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
    geometry: Mapping[str, Any] | None = None,
) -> list[FigurePage]:
    """Every page; the training curve only where there is a log, judges' agreement only where there were two.

    Steering only where step 6 has run, the verdict, which comes first, where step 7 has; of the geometry what could be
    computed.

    Answers above `em_threshold` count as misaligned.
    """
    pages: list[FigurePage] = []
    known = {name: part for name, part in (geometry or {}).items() if "reason" not in part}

    def add(section: str, file_name: str, title: str, sentence: str, figure: Any, **around: Any) -> None:
        pages.append(FigurePage(file_name, title, sentence, figure, command, inputs, section, **around))

    if verdict:
        add(
            "Verdict",
            "verdict.html",
            "Does the persona come apart?",
            "What was done in one dimension's name and where it showed. A persona that comes apart keeps to the "
            "diagonal and left of the boundary; an entangled one fills its rows. Only lines with an effect of their "
            "own are read.",
            verdict_card(verdict),
            **verdict_words(verdict),
        )
    if verdict and "rows" in verdict.get("interchange", {}):
        add(
            "Verdict",
            "interchange.html",
            "Which directions carry the choice",
            "Evidence beside the rule, which does not read it. One model's activation, where an aligned and a "
            "misaligned answer part, is put into the other model within one subspace: a direction of one dimension "
            "that moves only its own column is separable, one that moves all of them is shared.",
            interchange_matrix(verdict["interchange"]),
        )
    scores, components = "Scores", "Principal components"
    add(
        scores,
        "em_rates.html",
        "Emergent misalignment by dimension",
        "How far the narrow fine-tune carried: misaligned and on-topic answers outside finance are transfer, money "
        "talk where something else was asked is flip. Bars are shares of answers, whiskers their 95% intervals over "
        "prompts.",
        em_rates(rates),
    )
    add(
        scores,
        "em_scores.html",
        "Scores of the EM model's answers",
        "Which facets turned: the share of answers in each band of the misalignment score, from aligned to misaligned.",
        em_score_distribution(frame, em_threshold),
    )
    if agreement:
        pages.append(agreement_page(agreement, command, inputs, scores))
    if training_log:
        add(
            scores,
            "finetuning.html",
            "The fine-tune, step by step",
            "How the loss on the fine-tuning answers falls, with the learning rate and the gradient norm beside it.",
            training_curve(training_log),
        )
    first, parallel = clusterings[0], parallel_analysis(known)
    add(
        components,
        "pca_scree.html",
        "Variance by principal component",
        "How many directions the answers use: a steep curve means few directions hold most of the variance"
        + ("; those above the red band hold more than unrelated columns would." if parallel else "."),
        scree_plot(first, parallel),
    )
    add(
        components,
        "pca_2d.html",
        "Answers in the plane of the first two components",
        "Whether answers group by what was asked (left) or by how misaligned they are (right).",
        pca_plane(frame, first),
    )
    add(
        components,
        "pca_3d.html",
        "Answers in the space of the first three components",
        "The same answers with one more direction; turn it with the mouse.",
        pca_space(frame, first),
    )
    if geometry and "tsne" in known:
        add(
            components,
            "tsne_2d.html",
            "Answers on a t-SNE map",
            "Which answers are neighbours in all components at once: islands of one colour on the left are topics. "
            "t-SNE draws islands in noise too; whether there are clusters is for the tests below.",
            tsne_plane(frame, geometry),
        )
    add(
        "Clusters",
        "clusters_overview.html",
        "All cluster counts side by side",
        "Clusters that agree best with the dimension or facet asked about are the topic, those that agree best with "
        "being misaligned are misalignment at large: neither is a sub-persona.",
        cluster_overview(clusterings),
    )
    if geometry and "clusters" in known:
        add(
            "Clusters",
            "cluster_tests.html",
            "Are there clusters beyond the covariance?",
            "Any elongated cloud can be cut into tight pieces: only filled markers above the grey bars are more than "
            "Gaussian data of the same covariance give.",
            cluster_tests(geometry),
        )
        add(
            "Clusters",
            "cluster_explanations.html",
            "What each clustering is",
            "Pale cells are explained by what they agree with best (the topic, the base model's clusters, length, "
            "misalignment itself), by outliers, or by covariance alone. Only dark cells hold structure that none of "
            "these explains.",
            cluster_explanations(geometry),
        )
    if geometry and "power" in known:
        add(
            "Clusters",
            "power_curve.html",
            "What would have been found",
            "Sub-personas of known size were planted in these answers: where a line is below the dashed one, finding "
            "nothing means nothing. 0° would be one direction that all dimensions share, 90° one of each dimension's "
            "own; crosses are false alarms. Bars are 95% intervals, wide where planting was stopped early.",
            power_curve(geometry),
        )
    if geometry and "tree" in known:
        add(
            "Clusters",
            "dendrogram.html",
            "Ward's tree",
            "Which groups of answers merge last, and what they were asked about: leaves in one colour are a topic.",
            ward_dendrogram(geometry),
        )
    for clustering in clusterings:
        k = clustering["k"]
        section = f"{k} clusters"
        add(
            section,
            f"clusters_{k}_map.html",
            f"{k} clusters: map",
            "Where the clusters lie in the plane of the first two components; hover for question, answers and scores.",
            cluster_map(frame, clustering),
        )
        add(
            section,
            f"clusters_{k}_profile.html",
            f"{k} clusters: sizes, topics, scores",
            "What each cluster is made of: a bar in one colour is a topic; a high score is a misaligned cluster.",
            cluster_profile(frame, clustering),
        )
        add(
            section,
            f"clusters_{k}_silhouette.html",
            f"{k} clusters: silhouette",
            "How well each answer fits its cluster: values near 0 lie between clusters, below 0 in the wrong one.",
            silhouette_plot(clustering),
        )
    if geometry and "layers" in known:
        add(
            "Beyond one clustering",
            "layer_statistics.html",
            "The same statistics at every layer",
            "Whether another layer would have told another story: red cells with a star are more clustered than their "
            "covariance, at that layer, after correction over all cells of their statistic.",
            layer_statistics(geometry),
        )
    if geometry and "factorisations" in known:
        add(
            "Beyond one clustering",
            "factorisations.html",
            "PCA, ICA, NMF and a sparse dictionary",
            "A method that rebuilds well may still name its components at random: they mean something where they "
            "return in the other half of the prompts more reliably than those of Gaussian data.",
            factorisations(geometry),
        )
    if geometry and "probes" in known:
        add(
            "Beyond one clustering",
            "probes.html",
            "What a linear probe reads",
            "Activations tell more than the topic only where their interval lies clear of the baselines below them; "
            "the last row is the ceiling of knowing the prompt. On the right, values near 1 off the diagonal are a "
            "misaligned direction that dimensions share, those near 0 one that points the other way; blank where a "
            "class has under ten prompts.",
            probe_scores(geometry),
        )
    if steering:
        add(
            "Steering",
            "steering.html",
            "Effect of steering against dose",
            "Whether a measured direction causes misaligned answers: a line that leaves the grey band of random "
            "directions does (they are as long as the longest vector, so that a shorter one is held to more), and one "
            "that also rises where another dimension is asked about is shared between them. Read no rate where "
            "coherence has fallen.",
            dose_response(steering),
        )
        add(
            "Steering",
            "steering_cross_effects.html",
            "What the vector of one dimension does to the others",
            "A separable persona would change the answers on its own dimension alone (the diagonal); rows that are "
            "alike are one direction.",
            cross_effects(steering),
        )
    return pages


def parallel_analysis(known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The geometry's parallel analysis, if it could be computed."""
    parallel = known.get("rank", {}).get("parallel_analysis", {"reason": "not there"})
    return None if "reason" in parallel else parallel
