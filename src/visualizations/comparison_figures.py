"""Two studies beside each other as pictures; draws `study_comparison.compare_studies`, nothing here estimates."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.em_rates import OVERALL, SHOWN
from src.visualizations.figure_page import as_percent, escape_text
from src.visualizations.palette import (
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
    dimension_colour,
    dimension_symbol,
    display_name,
    known_order,
)

Record = Mapping[str, Any]
MEASURE = "em_on_topic"


def rates_beside(record: Record) -> go.Figure:
    """A panel a measure: the first study's share against the second's, a marker a dimension; above the line: more."""
    measures = list(dict.fromkeys(row["measure"] for row in record["rates"]))
    order = known_order([row["subset"] for row in record["rates"]])
    rates = sorted(record["rates"], key=lambda row: order.index(row["subset"]))
    one, two = (escape_text(name, width=40) for name in record["studies"])
    figure = make_subplots(cols=len(measures), subplot_titles=[SHOWN[measure] for measure in measures])
    for column, measure in enumerate(measures, start=1):
        figure.add_scatter(
            x=[0, 100], y=[0, 100], mode="lines", line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1},
            showlegend=False, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        for row in rates:
            if row["measure"] != measure or row["first"] is None:
                continue
            change, name = row["difference"], escape_text(display_name(row["subset"]))
            error = as_percent(np.array([change["high"] - change["estimate"], change["estimate"] - change["low"]]))
            figure.add_scatter(
                x=as_percent(np.array([row["first"]])), y=as_percent(np.array([row["second"]])), mode="markers",
                marker={"size": 12, "color": NEUTRAL_COLOUR if row["subset"] == OVERALL else
                        dimension_colour(row["subset"]), "symbol": dimension_symbol(row["subset"])},
                error_y={"type": "data", "symmetric": False, "array": error[:1], "arrayminus": error[1:]},
                name=name, legendgroup=name, showlegend=column == 1,
                hovertemplate=name + ": %{x:.1f}% and %{y:.1f}%<extra></extra>", row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(range=[-4, 104], title_text=f"A: {one}")
    figure.update_yaxes(range=[-4, 104])
    figure.update_yaxes(title_text=f"B: {two}", col=1)
    return figure.update_layout(
        template=TEMPLATE, height=520, title_text="% of answers; whiskers: 95% interval of the difference over prompts"
    )


def clusters_beside(record: Record) -> go.Figure:
    """Agreement of the two studies' clusters by k, beside each one's agreement with the dimension asked about."""
    rows = record["clusters"]
    counts = [str(row["k"]) for row in rows]
    series = {
        "A with B": ([row["ami"] for row in rows], REFERENCE_COLOUR),
        "A with the dimension": ([row["ami_dimension"][0] for row in rows], "#A3ACB8"),
        "B with the dimension": ([row["ami_dimension"][1] for row in rows], "#2F3B52"),
    }
    figure = go.Figure()
    for name, (values, colour) in series.items():
        hover = "k = %{x}: %{y:.2f}<extra>%{fullData.name}</extra>"
        figure.add_bar(x=counts, y=values, name=name, marker_color=colour, hovertemplate=hover)
    figure.update_xaxes(type="category", title_text="clusters")
    figure.update_yaxes(range=[min(-0.05, *(min(values) for values, _ in series.values())), 1.02])
    figure.update_yaxes(title_text="adjusted mutual information")
    title = f"k-means of the answers to {record['shared']:,} questions that both were asked"
    return figure.update_layout(template=TEMPLATE, height=440, barmode="group", title_text=title)
