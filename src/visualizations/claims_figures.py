"""The page of the interpretation claims: what each speaks of by epoch, a line a seed, and the verdict above it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import FAINT_COLOUR, NEUTRAL_COLOUR, REFERENCE_COLOUR
from src.visualizations.panels import Spec, assembled, axes, axis_names, panel_title, titled

COLUMNS, PANEL, GAP, TOP = 2, 190, 200, 150  # pixels but for the first; two fit a page of 800
VERDICT_COLOURS = {"held": "#0072B2", "did not hold": REFERENCE_COLOUR, "not decided": "#7A8794"}
TITLE_WIDTH, STATISTIC_WIDTH = 40, 46  # characters


def claims_page(result: Mapping[str, Any], command: str, inputs: Mapping[str, str]) -> FigurePage:
    """`interpretation_claims.html`; `result` is what `claims_report` gives."""
    return FigurePage(
        file_name="interpretation_claims.html",
        title="Interpreting the training pictures: which claims held",
        sentence=sentence(result),
        figure=claims_figure(result),
        command=command,
        inputs=inputs,
    )


def sentence(result: Mapping[str, Any]) -> str:
    """What there is to see, in numbers."""
    verdicts = [row["verdict"] for row in result["claims"]]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICT_COLOURS)
    accuracy = result["final_accuracy"]
    return (
        f"Of {len(verdicts)} claims tested on {len(result['seeds'])} trainings of {result['epochs']} epochs in the "
        f"judge world ({accuracy['mean']:.1%} right at the end, least {accuracy['least']:.1%}): {counts}. A grey line "
        "is a training, the dark one their median; epoch 0 is before training. Below a claim: what was computed, the "
        "verdict with the mean over trainings, p for the claim and against it, each corrected by Holm over all claims."
    )


def claims_figure(result: Mapping[str, Any]) -> go.Figure:
    """A panel a claim, in the order of the report."""
    rows = -(-len(result["claims"]) // COLUMNS)
    total = rows * PANEL + (rows - 1) * GAP
    data: list[Spec] = []
    annotations: list[Spec] = []
    layout: Spec = {}
    width = 1 / COLUMNS
    for number, claim in enumerate(result["claims"]):
        line, column = divmod(number, COLUMNS)
        top = 1 - line * (PANEL + GAP) / total
        x_domain = [column * width + (0.09 if column else 0), (column + 1) * width - 0.02]
        y_domain = [max(0.0, top - PANEL / total), top]
        layout |= axes(
            number + 1, x_domain, y_domain,
            {"title": titled("Epoch"), "dtick": 1}, {"title": titled(escape_text(claim["trajectory_name"], 28))},
        )  # fmt: skip
        data += lines_of(number + 1, claim)
        annotations += heading(claim, x_domain[0], top)
    return assembled(
        data,
        layout | {
            "annotations": annotations, "showlegend": False, "height": total + TOP + 100,
            "margin": {"t": TOP, "b": 60, "l": 70, "r": 20},
        },
        [],
    )  # fmt: skip


def lines_of(panel: int, claim: Mapping[str, Any]) -> list[Spec]:
    """One line a seed and their median."""
    values = np.array(claim["trajectories"], dtype=np.float64)  # None becomes NaN
    epochs = [*range(values.shape[1])]
    shown = [
        {
            "type": "scatter", "x": epochs, "y": as_floats(row), "mode": "lines", "connectgaps": False,
            "line": {"color": FAINT_COLOUR, "width": 1}, "hovertemplate": "epoch %{x}: %{y:.3f}<extra></extra>",
            **axis_names(panel),
        }
        for row in values
    ]  # fmt: skip
    known = ~np.isnan(values).all(axis=0)
    middle = np.full(values.shape[1], np.nan)
    middle[known] = np.nanmedian(values[:, known], axis=0)
    median = {
        "type": "scatter", "x": epochs, "y": as_floats(middle), "mode": "lines+markers",
        "line": {"color": NEUTRAL_COLOUR, "width": 2.5}, "marker": {"size": 6},
        "hovertemplate": "median, epoch %{x}: %{y:.3f}<extra></extra>", **axis_names(panel),
    }  # fmt: skip
    return [*shown, median]


def heading(claim: Mapping[str, Any], x: float, y: float) -> list[Spec]:
    """The document's words, what was computed, and the verdict in its colour with its numbers."""
    statistic = escape_text(claim["statistic"], STATISTIC_WIDTH)
    computed = panel_title(statistic, x, y) | {"yshift": 36, "font": {"size": 11, "color": NEUTRAL_COLOUR}}
    above = 36 + 14.5 * (1 + statistic.count("<br>"))
    words = panel_title(escape_text(claim["document"], TITLE_WIDTH), x, y) | {"yshift": above}
    estimate = "not measured" if claim["estimate"] is None else f"{claim['estimate']:+.2f}"
    of = f", as claimed in {claim['agreeing']} of {claim['n_seeds']}" if claim["agreeing"] is not None else ""
    text = (
        f"{claim['verdict'].capitalize()}: {estimate}{of}<br>"
        f"p for {claim['p_for_holm']:.3f}, against {claim['p_against_holm']:.3f}"
    )
    found = panel_title(text, x, y) | {"font": {"size": 12, "color": VERDICT_COLOURS[claim["verdict"]]}}
    return [words, computed, found]
