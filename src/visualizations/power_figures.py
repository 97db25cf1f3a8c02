"""Figure of the power of the geometry's negatives: planted sub-personas that were found, against their size.

It draws the part `power` of `results/decomposition_geometry.json`; nothing here estimates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from src.utils.decomposition.geometry_report import smallest_found
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.evidence_words import describe_evidence
from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.geometry_figures import ALPHA, BEYOND_COLOUR
from src.visualizations.palette import NEUTRAL_COLOUR, REFERENCE_COLOUR, TEMPLATE

Record = Mapping[str, Any]

QUESTIONS = {
    "subspaces": "Do the dimensions vary in different directions?",
    "clusters": "Do answers fall into clusters, topic removed?",
}
SHADES = ("#9DB2CF", BEYOND_COLOUR)  # of the smallest and of the largest angle
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down")
APART = 0.012  # of the axis, between the lines of two angles


def power_curve(record: Record) -> go.Figure:
    """Share of planted data sets in which each test finds something, by size and angle, with 95% Clopper-Pearson bars.

    A panel a test, a line an angle; at size 0 nothing is planted. A test that was not planted for shows its reason.
    """
    power = record["power"]
    figure = make_subplots(
        rows=1,
        cols=len(QUESTIONS),
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=[panel_title(power, name) for name in QUESTIONS],
    )
    angles = sorted({row["angle"] for row in power["curve"] if row["angle"] is not None})
    colours = sample_colorscale(list(SHADES), [at / max(1, len(angles) - 1) for at in range(len(angles))])
    largest = max(row["snr"] for row in power["curve"])
    for column, name in enumerate(QUESTIONS, start=1):
        rows = [row for row in power["curve"] if row["detector"] == name]
        if not rows:
            figure.add_scatter(x=[None], y=[None], showlegend=False, row=1, col=column)
            figure.add_annotation(
                text=escape_text(power[name]["reason"], width=30), x=largest / 2, y=0.5,
                font={"color": NEUTRAL_COLOUR}, row=1, col=column,
            )  # fmt: skip
        for at, angle in enumerate(angles if rows else []):
            of_angle = [row for row in rows if row["angle"] == angle]
            offset = APART * largest * (at - (len(angles) - 1) / 2)
            add_shares(figure, of_angle, f"{angle:g}° apart", colours[at], SYMBOLS[at % len(SYMBOLS)], offset, column)
        none = [row for row in rows if row["snr"] == 0]
        add_shares(figure, none, "nothing planted (false positives)", NEUTRAL_COLOUR, "x", 0.0, column)
        for height, dash in ((power["power"], "dash"), (ALPHA, "dot")):
            figure.add_hline(y=height, line={"color": REFERENCE_COLOUR, "dash": dash, "width": 1.5}, row=1, col=column)
        figure.add_annotation(
            text=f"power {power['power']:g}", x=0, y=power["power"], xanchor="left", yanchor="top",
            font={"size": 11, "color": REFERENCE_COLOUR}, row=1, col=column,
        )  # fmt: skip
    figure.update_annotations(selector={"yref": "paper"}, font_size=13)
    figure.update_xaxes(
        title_text="size of what was planted,<br>in residual standard deviations (SNR)",
        range=[-0.04 * largest, 1.05 * largest],
        tickvals=sorted({row["snr"] for row in power["curve"]}),
    )
    figure.update_yaxes(range=[-0.04, 1.06], tickformat=".0%")
    figure.update_yaxes(title_text="data sets in which<br>the test found something", row=1, col=1)
    return figure.update_layout(
        template=TEMPLATE,
        height=500,
        margin={"t": 140},
        title_text=f"{describe_evidence(record)}<br>up to {power['repeats']} plantings a point, fewer where "
        f"{power['power']:g} was out of reach",
        legend={"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0},
    )


def panel_title(power: Record, name: str) -> str:
    """What a test asks, what it says of the data, and the smallest that it would have found."""
    if "reason" in power[name]:
        return QUESTIONS[name]
    found = f"here: {stated_p(power[name]['p'], power[name]['draws'])}"
    return "<br>".join([QUESTIONS[name], found, escape_text(smallest_found(power, name), width=52)])


def add_shares(
    figure: go.Figure, rows: Sequence[Record], name: str, colour: str, symbol: str, offset: float, column: int
) -> None:
    """Points with their intervals; a line joins them."""
    share, low, high = (np.array([row[part] for row in rows], dtype=float) for part in ("power", "low", "high"))
    figure.add_scatter(
        x=as_floats(np.array([row["snr"] + offset for row in rows])), y=as_floats(share), mode="lines+markers",
        name=name, legendgroup=name, showlegend=column == 1, line={"color": colour, "width": 2},
        marker={"symbol": symbol, "color": colour, "size": 10},
        error_y={"type": "data", "symmetric": False, "array": as_floats(high - share), "thickness": 1.5, "width": 5,
                 "arrayminus": as_floats(share - low)},
        text=[f"size {row['snr']:g}: {row['detected']} of {row['repeats']}" for row in rows],
        hovertemplate=f"{name}<br>%{{text}}<extra></extra>", row=1, col=column,
    )  # fmt: skip
