"""Norm outliers and topic as a picture: what k-means makes of rows with planted outliers, a panel an arm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.palette import TEMPLATE, cluster_style, dimension_colour, display_name, known_order


def outlier_pattern(arms: Mapping[str, Mapping[str, Any]]) -> go.Figure:
    """Above, norm against the first component by cluster; below, what each cluster is made of by dimension.

    `arms`: name -> `outlier_pattern.clustered_pattern`.
    """
    figure = make_subplots(
        rows=2,
        cols=len(arms),
        horizontal_spacing=0.06,
        vertical_spacing=0.16,
        row_heights=[0.55, 0.45],
        subplot_titles=[f"{escape_text(name)}<br>{sizes(found)}" for name, found in arms.items()],
    )
    for column, found in enumerate(arms.values(), start=1):
        labels, clusters = np.asarray(found["labels"]), found["clusters"]
        for label in range(len(clusters)):
            colour, symbol = cluster_style(label)
            rows = labels == label
            figure.add_scatter(
                x=as_floats(found["scores"][rows, 0]), y=as_floats(found["norms"][rows]), mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.7}, name=f"Cluster {label}",
                legendgroup=f"cluster {label}", showlegend=column == 1,
                hovertemplate=f"cluster {label}: norm %{{y:.1f}}<extra></extra>", row=1, col=column,
            )  # fmt: skip
        for dimension in known_order([*clusters[0]["dimension"]]):
            name = escape_text(display_name(dimension))
            figure.add_bar(
                x=[f"Cluster {label}<br>{cluster['size']}" for label, cluster in enumerate(clusters)],
                y=[cluster["dimension"][dimension] for cluster in clusters],
                marker_color=dimension_colour(dimension), name=name, legendgroup=name, showlegend=column == 1,
                hovertemplate="%{y} answers<extra>" + name + "</extra>", row=2, col=column,
            )  # fmt: skip
    figure.update_xaxes(title_text="first component", row=1)
    figure.update_yaxes(title_text="norm", row=1, col=1)
    figure.update_yaxes(title_text="answers", row=2, col=1)
    return figure.update_layout(template=TEMPLATE, barmode="stack", height=720, margin={"t": 90})


def sizes(found: Mapping[str, Any]) -> str:
    return " / ".join(str(cluster["size"]) for cluster in found["clusters"])
