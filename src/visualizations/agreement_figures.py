"""Two judges on the same answers: a Bland-Altman figure and its page. The measures are computed elsewhere."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import NEUTRAL_COLOUR, REFERENCE_COLOUR, TEMPLATE

LARGEST_MARKER = 26
LINES = {"mean_difference": "mean", "lower_limit": "-1.96 SD", "upper_limit": "+1.96 SD"}


def agreement_page(agreement: Mapping[str, Any], command: str, inputs: Mapping[str, str], section: str) -> FigurePage:
    """The page of the figure; `agreement` is what `agreement.agreement_of` gives."""
    return FigurePage(
        "judge_agreement.html",
        "Two judges on the same answers",
        "Where the judges differ, and by how much: a cloud around 0 is agreement, a slope or an offset is a bias "
        "of one of them.",
        bland_altman(agreement),
        command,
        inputs,
        section,
    )


def bland_altman(agreement: Mapping[str, Any]) -> go.Figure:
    """For each score, differences against means of its pairs, with the limits of agreement.

    `agreement` is what `agreement.agreement_of` gives. Pairs on one place share a marker, its area their number.
    """
    first, second = (escape_text(name) for name in agreement["judges"])
    rows = agreement["measures"]
    figure = make_subplots(
        rows=1, cols=len(rows), horizontal_spacing=0.09, subplot_titles=[_panel_title(row, agreement) for row in rows]
    )
    for column, row in enumerate(rows, start=1):
        places = Counter((round((a + b) / 2), round(b - a)) for a, b in agreement["pairs"][row["score"]])
        x, y = (as_floats(np.array([place[axis] for place in places])) for axis in (0, 1))
        counts = as_floats(np.array(list(places.values())))
        largest = float(counts.max()) if len(counts) else 1.0
        figure.add_scatter(
            x=x, y=y, mode="markers", name=row["score"], showlegend=False, customdata=counts,
            marker={"color": NEUTRAL_COLOUR, "opacity": 0.6, "size": counts, "sizemode": "area", "sizemin": 3,
                    "sizeref": 2 * largest / LARGEST_MARKER**2, "line": {"width": 0}},
            hovertemplate="mean %{x:.0f}, difference %{y:.0f}: %{customdata:.0f} answers<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
        for name, label in LINES.items():
            if row[name] is not None:
                dash = "solid" if name == "mean_difference" else "dash"
                figure.add_hline(
                    y=row[name], line={"color": REFERENCE_COLOUR, "dash": dash},
                    annotation={"text": f"{label}: {row[name]:.1f}", "font": {"color": REFERENCE_COLOUR, "size": 12}},
                    annotation_position="top right", row=1, col=column,
                )  # fmt: skip
        figure.update_xaxes(
            title_text=f"Mean of the two {row['score']}s (0 to 100)", range=[-4, 104], row=1, col=column
        )
        figure.update_yaxes(range=[-105, 105], row=1, col=column)
    figure.update_yaxes(title_text=f"{second}<br>minus {first}, in points", row=1, col=1)
    return figure.update_layout(
        template=TEMPLATE,
        height=560,
        margin_t=110,
        title_text="Marker: answers with these two scores, area: how many; lines: mean and limits of agreement",
    )


def _panel_title(row: Mapping[str, Any], agreement: Mapping[str, Any]) -> str:
    def shown(value: float | None) -> str:
        return "not defined" if value is None else f"{value:.2f}"

    threshold = agreement["thresholds"][row["score"]]
    return (
        f"{row['score']}: {row['pairs']:,} answers<br>Spearman {shown(row['spearman'])}, "
        f"kappa at {threshold:g}: {shown(row['kappa'])}"
    )
