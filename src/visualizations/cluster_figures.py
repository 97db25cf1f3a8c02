"""Figures of one k-means clustering, and of all of them beside each other.

Each takes the frame and the clustering (see `answer_points`) and returns a figure; writing it is left to
`figure_page`. A cluster has the same colour and symbol in all of them, grey beyond the largest of very many
(`styles_of`). Clusters that hold no answer are not shown.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots

from src.visualizations.answer_points import (
    Clustering,
    component_title,
    describe_source,
    hover_texts,
    is_clustered,
    join_points,
)
from src.visualizations.figure_page import as_floats, as_percent, escape_text
from src.visualizations.palette import (
    ARM_COLOURS,
    FAINT_COLOUR,
    MISSING_NAME,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
    cluster_style,
    dimension_colour,
    display_name,
    known_order,
)

AGREEMENTS = {
    "ami_dimension": ("with dimension", "#117755", "circle"),
    "ami_facet": ("with facet", "#AA4499", "square"),
    "ami_misaligned": ("with being misaligned", "#B45309", "diamond"),
}
LABEL_ROOM = 0.055  # of the extent of the points, between two labels
MANY = 15  # above so many clusters not all can be told apart by colour, and labels get smaller
COLOURED = 10  # of so many clusters, the largest


def cluster_map(frame: pd.DataFrame, clustering: Clustering) -> go.Figure:
    """The answers in the first two components by cluster, full text on hover.

    The number of a cluster stands near its centre, unless those of larger clusters leave no room for it there.
    """
    points = join_points(frame, clustering)
    figure = go.Figure()
    styles = styles_of(points["label"].to_numpy())
    is_grey = points["label"].map({label: colour == FAINT_COLOUR for label, (colour, _) in styles.items()})
    others = points[is_grey.astype(bool)]
    if len(others):  # below the others
        name = f"{others['label'].nunique()} others ({len(others)})"
        add_cluster(figure, others, name, FAINT_COLOUR, cluster_style(0)[1])
    for label, part in points.drop(others.index).groupby("label", sort=True):
        add_cluster(figure, part, f"Cluster {label} ({len(part)})", *styles[int(str(label))])
    for label, (x, y) in _label_places(points.drop(others.index)).items():
        figure.add_annotation(
            x=x, y=y, text=str(label), borderpad=2, bordercolor=styles[label][0],
            font={"size": 14, "color": "#111111"}, bgcolor="rgba(255,255,255,0.85)",
        )  # fmt: skip
    coloured = f"<br>{COLOURED} largest in colour" if len(others) else ""
    return figure.update_layout(
        template=TEMPLATE,
        height=620,
        margin_t=50,
        title_text=_title(clustering, len(styles)),
        xaxis_title_text=component_title(clustering, 0),
        yaxis_title_text=component_title(clustering, 1),
        showlegend=True,
        legend={"title": {"text": f"Cluster (answers){coloured}"}, "itemsizing": "constant"},
    )


def add_cluster(figure: go.Figure, part: pd.DataFrame, name: str, colour: str, symbol: str) -> None:
    """Some answers in one colour, their cluster and full text on hover."""
    texts = zip(part["label"], hover_texts(part), strict=True)
    figure.add_scatter(
        x=as_floats(part["pc1"]),
        y=as_floats(part["pc2"]),
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 7, "opacity": 0.75},
        hovertext=[f"Cluster {label}<br>{text}" for label, text in texts],
        hoverinfo="text",
    )


def styles_of(labels: Int[np.ndarray, " n"]) -> dict[int, tuple[str, str]]:
    """Colour and symbol of each cluster; of more than `MANY` the `COLOURED` largest have one, the others are grey."""
    sizes = pd.Series(labels).value_counts().sort_index().sort_values(ascending=False, kind="stable")
    if len(sizes) <= MANY:
        return {int(label): cluster_style(int(label)) for label in sorted(sizes.index)}
    grey = (FAINT_COLOUR, cluster_style(0)[1])
    return {int(label): cluster_style(rank) if rank < COLOURED else grey for rank, label in enumerate(sizes.index)}


def cluster_profile(frame: pd.DataFrame, clustering: Clustering) -> go.Figure:
    """For each cluster its size, its composition by dimension and the mean em_score of its answers."""
    points = join_points(frame, clustering)
    labels = sorted(points["label"].unique())
    names = [str(label) for label in labels]
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.09,
        row_heights=[0.28, 0.42, 0.3],
        subplot_titles=("Answers in the cluster", "Composition by dimension of the question",
                        "Mean em_score of the EM answers (0 aligned, 100 misaligned)"),
    )  # fmt: skip
    size, angle = (12, 0) if len(labels) <= MANY else (9, -90)
    counts = points["label"].value_counts().reindex(labels)
    figure.add_bar(
        x=names, y=counts.to_numpy(), marker_color=NEUTRAL_COLOUR, showlegend=False, name="size",
        text=[str(count) for count in counts], textposition="outside", textangle=angle, cliponaxis=False,
        constraintext="none", textfont_size=size, hovertemplate="cluster %{x}: %{y} answers<extra></extra>",
        row=1, col=1,
    )  # fmt: skip
    for dimension in known_order(list(points["subset"])):
        share = points["subset"].eq(dimension).groupby(points["label"]).mean().reindex(labels)
        name = escape_text(display_name(dimension))
        figure.add_bar(
            x=names, y=as_percent(share), marker_color=dimension_colour(dimension), name=name,
            hovertemplate="cluster %{x}: %{y:.1f}%<extra>" + name + "</extra>", row=2, col=1,
        )  # fmt: skip
    mean = points["em_score"].astype(float).groupby(points["label"]).mean().reindex(labels)
    scored = points["em_score"].notna().groupby(points["label"]).sum().reindex(labels)
    figure.add_bar(
        x=names, y=as_floats(mean), marker_color=ARM_COLOURS["em"], showlegend=False, name="mean em_score",
        text=[MISSING_NAME if np.isnan(value) else f"{value:.0f}" for value in mean], textposition="outside",
        textangle=angle, cliponaxis=False, constraintext="none", textfont_size=size,
        customdata=scored.to_numpy(),
        hovertemplate="cluster %{x}: mean %{y:.1f} of %{customdata} scored answers<extra></extra>", row=3, col=1,
    )  # fmt: skip
    for label in mean.index[mean.isna()]:  # a bar without height shows no text
        figure.add_annotation(x=str(label), y=0, text=MISSING_NAME, yanchor="bottom", font={"size": size}, row=3, col=1)
    figure.update_xaxes(
        type="category", categoryorder="array", categoryarray=names, tickangle=angle, tickfont_size=size
    )
    figure.update_xaxes(dtick=1, title_text="Cluster", row=3, col=1)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="answers", range=[0, 1.22 * counts.max()], row=1, col=1)
    figure.update_yaxes(title_text="% of cluster", range=[0, 100], row=2, col=1)
    figure.update_yaxes(title_text="em_score", range=[0, 118], tickvals=[0, 25, 50, 75, 100], row=3, col=1)
    return figure.update_layout(
        template=TEMPLATE,
        height=680,
        barmode="stack",
        bargap=0.25,
        title_text=_title(clustering, len(labels)),
        legend={"title": {"text": "Dimension"}, "y": 0.5, "yanchor": "middle", "traceorder": "normal"},
    )


def silhouette_plot(clustering: Clustering) -> go.Figure:
    """One bar an answer, sorted within its cluster; the line is the mean over all. Undefined for a single cluster."""
    is_in = is_clustered(clustering)
    labels = np.asarray(clustering["labels"], dtype=int)[is_in]
    values = np.asarray(clustering["silhouette_samples"], dtype=np.float32)[is_in]
    present = np.unique(labels)
    gap = max(1.0, len(labels) / (8 * len(present)))
    slot = 0.85 * len(labels) / len(present) if len(present) > MANY else 0.3 * len(labels) / len(present)
    height = 620 if len(present) <= MANY else max(760, 140 + 17 * len(present))
    figure, styles = go.Figure(), styles_of(labels)
    bottom, middles = 0.0, []
    for label in present[::-1]:  # plotly counts upwards, a reader downwards
        own = np.sort(values[labels == label])
        middle = bottom + max(len(own), slot) / 2  # small clusters get room for their name
        middles.append(middle)
        figure.add_bar(
            x=own,
            y=(middle - (len(own) - 1) / 2 + np.arange(len(own))).astype(np.float32),
            orientation="h",
            width=1,
            name=f"Cluster {label}",
            marker={"color": styles[int(label)][0], "line": {"width": 0}},
            hovertemplate=f"cluster {label}: %{{x:.2f}}<extra></extra>",
        )
        bottom += max(len(own), slot) + gap
    mean = float(clustering["silhouette"])
    if np.isfinite(mean):
        figure.add_vline(x=mean, line_dash="dash", line_color=REFERENCE_COLOUR)
        figure.add_annotation(x=mean, y=1, yref="paper", yanchor="bottom", xanchor="left", text=f"mean {mean:.2f}",
                              font={"color": REFERENCE_COLOUR})  # fmt: skip
    else:
        figure.add_annotation(x=0.5, y=0.5, xref="paper", yref="paper", font={"size": 16},
                              text="The silhouette is not defined for a single cluster")  # fmt: skip
    figure.update_yaxes(
        title_text="Cluster (answers)",
        tickvals=middles,
        ticktext=[f"{label} ({np.sum(labels == label)})" for label in present[::-1]],
        tickfont_size=12 if len(present) <= MANY else 10,
        range=[-gap, bottom],
        showgrid=False,
    )
    figure.update_xaxes(
        title_text="Silhouette of an answer (1: deep in its cluster, 0: on a border, below 0: nearer to another)",
        range=[
            min(-0.05, float(np.nanmin(values, initial=0.0)) - 0.02),
            max(0.5, float(np.nanmax(values, initial=0.0)) + 0.02),
        ],
    )
    return figure.update_layout(
        template=TEMPLATE, height=height, bargap=0, showlegend=False, title_text=_title(clustering, len(present))
    )


def cluster_overview(clusterings: Sequence[Clustering]) -> go.Figure:
    """All k beside each other: silhouette, inertia, cluster sizes, agreement with dimension, facet, misalignment."""
    ordered = sorted(clusterings, key=lambda clustering: clustering["k"])
    names = [str(clustering["k"]) for clustering in ordered]
    sizes = [np.unique(np.asarray(item["labels"])[is_clustered(item)], return_counts=True)[1] for item in ordered]
    panels: list[tuple[int, int, str, Sequence[float], str, str]] = [
        (1, 1, "mean silhouette", [item["silhouette"] for item in ordered], NEUTRAL_COLOUR, "circle"),
        (1, 2, "inertia", [item["inertia"] for item in ordered], NEUTRAL_COLOUR, "circle"),
        (2, 1, "largest cluster", [int(size.max()) for size in sizes], "#2F3B52", "triangle-up"),
        (2, 1, "smallest cluster", [int(size.min()) for size in sizes], "#8494A8", "triangle-down"),
        *(
            (2, 2, name, [item[key] for item in ordered], colour, symbol)
            for key, (name, colour, symbol) in AGREEMENTS.items()
        ),
    ]
    figure = make_subplots(
        rows=2,
        cols=2,
        vertical_spacing=0.19,
        horizontal_spacing=0.1,
        subplot_titles=(
            "Mean silhouette (higher: clearer clusters)",
            "Inertia: squared distances to the<br>centres (an elbow marks k)",
            "Smallest and largest cluster",
            "Adjusted mutual information<br>(1: the clusters are what was asked, or misalignment)",
        ),
    )
    for row, column, name, values, colour, symbol in panels:
        figure.add_scatter(
            x=names, y=np.asarray(values, dtype=np.float32), mode="lines+markers", name=name,
            showlegend=row == 2, legend="legend" if column == 1 else "legend2",
            line_color=colour, marker={"symbol": symbol, "size": 9},
            hovertemplate="k = %{x}: %{y:.4~g}<extra>" + name + "</extra>", row=row, col=column,
        )  # fmt: skip
    figure.update_annotations(font_size=13)
    figure.update_xaxes(title_text="Number of clusters k", type="category")
    figure.update_yaxes(title_text="mean silhouette", row=1, col=1)
    figure.update_yaxes(title_text="inertia", row=1, col=2)
    figure.update_yaxes(title_text="answers", row=2, col=1)
    figure.update_yaxes(title_text="AMI", row=2, col=2)
    figure.update_yaxes(rangemode="tozero", row=1)
    figure.update_yaxes(range=[0, 1.3 * max(size.max() for size in sizes)], row=2, col=1)
    figure.update_yaxes(range=[min(0.0, *(item[name] for item in ordered for name in AGREEMENTS)), 1.3],
                        tickvals=[0, 0.25, 0.5, 0.75, 1], row=2, col=2)  # fmt: skip
    inside = {"orientation": "h", "xanchor": "right", "yanchor": "top", "y": 0.4, "font": {"size": 12}}
    return figure.update_layout(
        template=TEMPLATE,
        height=690,
        title_text=describe_source(ordered[0]),
        legend=inside | {"x": 0.45},
        legend2=inside | {"x": 1.0},
    )


def _label_places(points: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """For each cluster, largest first, that of its answers nearest to its centre where no other label is near."""
    plane = points[["pc1", "pc2"]].to_numpy(dtype=float)
    extent = np.ptp(plane, axis=0)
    scaled = plane / np.where(extent > 0, extent, 1.0)
    labels = points["label"].to_numpy()
    places: dict[int, int] = {}
    for label in points["label"].value_counts().index:
        own = np.flatnonzero(labels == label)
        from_centre = np.linalg.norm(scaled[own] - scaled[own].mean(axis=0), axis=1)
        for row in own[np.argsort(from_centre)]:
            if all(np.abs(scaled[other] - scaled[row]).max() >= LABEL_ROOM for other in places.values()):
                places[int(label)] = int(row)
                break
    return {label: (float(plane[row, 0]), float(plane[row, 1])) for label, row in places.items()}


def _title(clustering: Clustering, found: int) -> str:
    k = clustering["k"]
    clusters = f"k = {k}" if found == k else f"k = {k}, answers in {found} only"
    return f"{clusters} · {describe_source(clustering)}"
