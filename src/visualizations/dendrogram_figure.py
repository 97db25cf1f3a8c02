"""The top of Ward's tree with what its leaves were asked about, from `results/decomposition_geometry.json`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.cluster.hierarchy import dendrogram

from src.visualizations.evidence_words import describe_evidence
from src.visualizations.figure_page import as_percent, escape_text
from src.visualizations.geometry_figures import Record
from src.visualizations.palette import NEUTRAL_COLOUR, TEMPLATE, dimension_colour, display_name, known_order


def ward_dendrogram(record: Record) -> go.Figure:
    """The top of Ward's tree; below each leaf the dimensions of its answers."""
    tree = record["tree"]
    drawn = dendrogram(np.array(tree["merges"], dtype=float), no_plot=True)
    leaves = [tree["leaves"][place] for place in drawn["leaves"]]
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.04,
        row_heights=[0.66, 0.34],
    )
    # scipy puts leaf i at 5 + 10 i, and a merge's four corners in between
    x = [value for corners in drawn["icoord"] for value in (*[(corner - 5) / 10 for corner in corners], None)]
    y = [value for corners in drawn["dcoord"] for value in (*corners, None)]
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": NEUTRAL_COLOUR, "width": 1.5},
        showlegend=False,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    for dimension in known_order(list(leaves[0]["counts"])):
        share = np.array([leaf["counts"][dimension] / leaf["rows"] for leaf in leaves])
        name = escape_text(display_name(dimension))
        figure.add_bar(
            x=np.arange(len(leaves)), y=as_percent(share), marker_color=dimension_colour(dimension), name=name,
            hovertemplate="%{y:.0f}% of leaf %{x}<extra>" + name + "</extra>", row=2, col=1,
        )  # fmt: skip
    figure.update_yaxes(title_text="Height of the merge", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="% of leaf", range=[0, 100], row=2, col=1)
    figure.update_xaxes(showgrid=False, range=[-0.7, len(leaves) - 0.3], zeroline=False)
    figure.update_xaxes(
        tickvals=list(range(len(leaves))), ticktext=[str(leaf["rows"]) for leaf in leaves], autotickangles=[0, 90],
        tickfont_size=10, title_text="Answers in the leaf", row=2, col=1,
    )  # fmt: skip
    return figure.update_layout(
        template=TEMPLATE,
        height=640,
        barmode="stack",
        bargap=0.1,
        title_text=f"{describe_evidence(record)} · the last {len(tree['merges'])} of {tree['rows'] - 1} merges",
        legend={"title": {"text": "Dimension"}, "traceorder": "normal", "y": 0.3, "yanchor": "top"},
    )
