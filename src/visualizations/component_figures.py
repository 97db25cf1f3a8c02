"""Figures of the principal components: how much variance they hold, and the answers in the first two and three.

What k-means makes of them is left to `cluster_figures`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.visualizations.answer_points import (
    KEYS,
    Clustering,
    component_title,
    describe_source,
    hover_texts,
    join_points,
    short_hover_texts,
)
from src.visualizations.evidence_words import describe_evidence
from src.visualizations.figure_page import as_floats, as_percent, escape_text
from src.visualizations.palette import (
    MISSING_COLOUR,
    MISSING_NAME,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
    colour_bar,
    dimension_colour,
    dimension_symbol,
    display_name,
    em_scale,
    known_order,
)

LANDMARKS = (0.5, 0.8, 0.9)  # shares of variance marked in the scree plot
# plotly names its 3-D symbols apart from the 2-D ones and has no triangles
SYMBOLS_3D = {"circle": "circle", "square": "square", "diamond": "diamond", "cross": "cross", "x": "x"}


def scree_plot(clustering: Clustering, parallel: Mapping[str, Any] | None = None) -> go.Figure:
    """Explained variance by component, and its running sum with the numbers of components that reach 50, 80, 90%.

    With `parallel` (`rank.parallel_analysis` of the geometry) a third panel: eigenvalues against the null's band.
    """
    ratios = np.asarray(clustering["explained_variance_ratio"], dtype=float)
    numbers = np.arange(1, len(ratios) + 1)
    cumulative = np.cumsum(ratios)
    titles = ["Variance explained by each component", "Cumulative variance explained"]
    if parallel:
        titles.append(parallel_title(parallel))
    figure = make_subplots(
        rows=len(titles), cols=1, shared_xaxes=True, vertical_spacing=0.24 / len(titles), subplot_titles=titles
    )
    figure.update_annotations(font_size=13)
    figure.add_bar(
        x=numbers,
        y=as_percent(ratios),
        marker_color=NEUTRAL_COLOUR,
        hovertemplate="PC%{x}: %{y:.2f}%<extra></extra>",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=numbers,
        y=as_percent(cumulative),
        mode="lines+markers",
        line_color=NEUTRAL_COLOUR,
        hovertemplate="PC1 to PC%{x}: %{y:.1f}%<extra></extra>",
        row=2,
        col=1,
    )
    for share in LANDMARKS:
        reached = np.flatnonzero(cumulative >= share)
        if len(reached):
            count = int(reached[0]) + 1
            text = f"{share:.0%} with {count} component{'s' if count > 1 else ''}"
            figure.add_hline(y=100 * share, line_dash="dot", line_color=REFERENCE_COLOUR, row=2, col=1)
            figure.add_annotation(
                text=text, x=1, xref="x2 domain", xanchor="right", y=100 * share, yref="y2", yanchor="top",
                font={"size": 12, "color": REFERENCE_COLOUR},
            )  # fmt: skip
    figure.update_yaxes(title_text="% of variance", rangemode="tozero")
    figure.update_yaxes(range=[0, 104], row=2, col=1)
    figure.update_xaxes(range=[0, len(ratios) + 1])
    figure.update_xaxes(title_text="Principal component", row=len(titles), col=1)
    if parallel:
        add_parallel(figure, parallel, row=3)
    return figure.update_layout(
        template=TEMPLATE,
        height=320 * len(titles) - 20,
        showlegend=False,
        title_text=describe_source(clustering),
    )


def parallel_title(parallel: Mapping[str, Any]) -> str:
    least = "at least " if parallel["is_cut_off"] else ""
    return (
        f"Parallel analysis: {least}{parallel['retained']} components above the null<br>"
        f"(band: mean to 95th percentile of {parallel['resamples']} permutations)"
    )


def add_parallel(figure: go.Figure, parallel: Mapping[str, Any], row: int) -> None:
    """Eigenvalues of the correlation matrix on a logarithmic scale, filled where retained, over the null's band."""
    values, mean, limit = (np.asarray(parallel[name], dtype=float) for name in ("eigenvalues", "null_mean", "limit"))
    numbers, place = np.arange(1, len(values) + 1), {"row": row, "col": 1}
    edge = {"mode": "lines", "line": {"color": REFERENCE_COLOUR, "width": 1}}
    figure.add_scatter(x=numbers, y=as_floats(mean), name="null mean", hoverinfo="skip", **edge, **place)
    figure.add_scatter(
        x=numbers, y=as_floats(limit), name="null 95%", fill="tonexty", fillcolor="rgba(176,0,32,0.18)",
        hovertemplate="95% of nulls below %{y:.3g}<extra></extra>", **edge, **place,
    )  # fmt: skip
    is_retained = numbers <= parallel["retained"]
    figure.add_scatter(
        x=numbers, y=as_floats(values), mode="lines+markers", name="eigenvalue", line_color=NEUTRAL_COLOUR,
        marker={"symbol": np.where(is_retained, "circle", "circle-open").tolist(), "size": 7},
        hovertemplate="PC%{x}: %{y:.3g}<extra></extra>", **place,
    )  # fmt: skip
    figure.update_yaxes(type="log", dtick=1, title_text="eigenvalue", **place)


def pca_plane(frame: pd.DataFrame, clustering: Clustering) -> go.Figure:
    """The answers in the first two components: left by dimension, with full hover text; right by em_score."""
    figure = answer_plane(join_points(frame, clustering), "pc1", "pc2")
    figure.update_xaxes(title_text=component_title(clustering, 0))
    figure.update_yaxes(title_text=component_title(clustering, 1), row=1, col=1)
    return figure.update_layout(title_text=describe_source(clustering))


def tsne_plane(frame: pd.DataFrame, geometry: Mapping[str, Any]) -> go.Figure:
    """The answers where t-SNE put them (`tsne` of the geometry), coloured as in `pca_plane`."""
    tsne = geometry["tsne"]
    placed = pd.DataFrame({KEYS[0]: tsne["prompt_ids"], KEYS[1]: tsne["samples"], "x": tsne["x"], "y": tsne["y"]})
    points = placed.merge(frame, on=KEYS, how="left", validate="one_to_one")
    figure = answer_plane(points, "x", "y")
    figure.update_xaxes(showticklabels=False, title_text="t-SNE (distances far apart mean nothing)")
    figure.update_yaxes(showticklabels=False)
    return figure.update_layout(title_text=f"{describe_evidence(geometry)} · perplexity {tsne['perplexity']:.3g}")


def answer_plane(points: pd.DataFrame, x: str, y: str) -> go.Figure:
    """Two panels of the same points: left by dimension, with full hover text; right by em_score."""
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=("Colour: dimension of the question", "Colour: em_score of the EM answer"),
    )
    figure.update_annotations(font_size=13)
    for dimension in known_order(list(points["subset"])):
        part = points[points["subset"] == dimension]
        figure.add_scatter(
            x=as_floats(part[x]),
            y=as_floats(part[y]),
            mode="markers",
            name=escape_text(f"{display_name(dimension)} ({len(part)})"),
            marker={"color": dimension_colour(dimension), "symbol": dimension_symbol(dimension), "size": 6,
                    "opacity": 0.8},
            hovertext=hover_texts(part),
            hoverinfo="text",
            row=1,
            col=1,
        )  # fmt: skip
    is_scored = points["em_score"].notna()
    unscored, scored = points[~is_scored], points[is_scored]
    figure.add_scatter(
        x=as_floats(scored[x]),
        y=as_floats(scored[y]),
        mode="markers",
        name="em_score",
        showlegend=False,
        marker={"color": as_floats(scored["em_score"]), "size": 6, "opacity": 0.8, **_em_colours()},
        hovertext=short_hover_texts(scored),
        hoverinfo="text",
        row=1,
        col=2,
    )
    if len(unscored):
        figure.add_scatter(
            x=as_floats(unscored[x]),
            y=as_floats(unscored[y]),
            mode="markers",
            name=f"{MISSING_NAME} ({len(unscored)})",
            marker={"symbol": "x-thin", "size": 8, "line": {"color": MISSING_COLOUR, "width": 2}},
            hovertext=short_hover_texts(unscored),
            hoverinfo="text",
            row=1,
            col=2,
        )
    figure.update_xaxes(matches="x", row=1, col=2)
    return figure.update_layout(
        template=TEMPLATE,
        height=620,
        legend={"orientation": "h", "y": -0.13, "yanchor": "top", "x": 0},
    )


def pca_space(frame: pd.DataFrame, clustering: Clustering) -> go.Figure:
    """The answers in the first three components, by dimension; drag to turn."""
    points = join_points(frame, clustering)
    figure = go.Figure()
    for dimension in known_order(list(points["subset"])):
        part = points[points["subset"] == dimension]
        figure.add_scatter3d(
            x=as_floats(part["pc1"]),
            y=as_floats(part["pc2"]),
            z=as_floats(part["pc3"]),
            mode="markers",
            name=escape_text(f"{display_name(dimension)} ({len(part)})"),
            marker={"color": dimension_colour(dimension), "symbol": SYMBOLS_3D[dimension_symbol(dimension)],
                    "size": 3.5, "opacity": 0.85},
            hovertext=hover_texts(part),
            hoverinfo="text",
        )  # fmt: skip
    axes = {
        f"{axis}axis": {"title": {"text": component_title(clustering, index)}, "backgroundcolor": "#F6F7F9"}
        for index, axis in enumerate("xyz")
    }
    return figure.update_layout(
        template=TEMPLATE,
        height=640,
        title_text=describe_source(clustering),
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        scene={
            **axes,
            "aspectmode": "cube",
            "camera": {"eye": {"x": 1.4, "y": 1.4, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.2}},
        },
        legend={"x": 0.01, "y": 0.93, "itemsizing": "constant"},
    )


def _em_colours() -> dict[str, object]:
    return {
        "colorscale": em_scale(),
        "cmin": 0,
        "cmax": 100,
        "colorbar": colour_bar("em_score: 0 aligned, 100 misaligned", len=0.9),
    }  # fmt: skip
