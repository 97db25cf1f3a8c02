"""Figures of what a linear probe reads, beside its baselines, and of how factorisations of the same rows compare.

They draw `results/decomposition_geometry.json`; nothing here estimates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.decomposition.probes import LEAST_PROMPTS, PROMPT
from src.visualizations.evidence_words import describe_evidence
from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.geometry_figures import BEYOND_COLOUR
from src.visualizations.palette import (
    FAINT_COLOUR,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
    colour_bar,
    display_name,
    known_order,
)
from src.visualizations.steering_figures import DIVERGING

Record = Mapping[str, Any]

PREDICTOR_NAMES = {
    "activations": "activations",
    "topic": "topic alone",
    "question_text": "question's<br>words",
    "answer_text": "answer's<br>words",
    "question_and_answer_text": "both texts'<br>words",
    "base_activations": "base model's<br>activations",
    "shuffled_labels": "shuffled<br>labels",
    "prompt_identity": "the prompt's<br>other answers",
}
PREDICTOR_STYLES = {
    "activations": ("diamond", BEYOND_COLOUR),
    "shuffled_labels": ("x", "#9AA0A6"),
    PROMPT: ("star", NEUTRAL_COLOUR),
}
TARGET_NAMES = {"dimension": "Which dimension<br>was asked about", "misaligned": "Whether the answer<br>is misaligned"}
PANELS = ((0.0, 0.22), (0.27, 0.49), (0.68, 1.0))  # shares of the width
METHOD_NAMES = {"pca": "PCA", "ica": "ICA", "nmf": "NMF (signed parts)", "dictionary": "sparse dictionary"}


def probe_scores(record: Record) -> go.Figure:
    """AUROC with 95% intervals over prompts by predictor and target; right, the misaligned direction across dimensions.

    What could not be probed has its reason in place of points; a dimension with fewer than `LEAST_PROMPTS` prompts of a
    class is left blank.
    """
    probes = record["probes"]
    figure = make_subplots(
        rows=1,
        cols=3,
        subplot_titles=(
            *(f"{title}{counted_rows(probes[target])}" for target, title in TARGET_NAMES.items()),
            "Misaligned direction, fitted on one dimension<br>(rows: n misaligned / aligned), read in another",
        ),
    )
    for column, target in enumerate(TARGET_NAMES, start=1):
        if "reason" in probes[target]:
            add_reason(figure, probes[target]["reason"], column)
        else:
            rows = [row for row in probes[target]["table"] if row["measure"] == "auroc"]
            add_predictors(figure, rows, column)
        figure.update_xaxes(range=[0.38, 1.06], title_text="AUROC", row=1, col=column)
    figure.update_yaxes(
        categoryorder="array", categoryarray=[*PREDICTOR_NAMES.values()][::-1], range=[-0.6, len(PREDICTOR_NAMES) - 0.4]
    )
    figure.update_yaxes(showticklabels=False, row=1, col=2)
    add_transfer(figure, probes["transfer"], 3)
    place_panels(figure)
    figure.update_annotations(selector={"yref": "paper"}, font_size=13)
    return figure.update_layout(
        template=TEMPLATE,
        height=600,
        margin={"t": 100},
        title_text=describe_evidence(record),
        showlegend=False,
    )


def counted_rows(probe: Record) -> str:
    """How many answers were probed, as the end of a title."""
    return "" if "reason" in probe else f" (n = {probe['rows']})"


def place_panels(figure: go.Figure) -> None:
    """The first two panels side by side, room for the names of the matrix's rows before the third."""
    titles = [title for title in figure.layout.annotations if title.yref == "paper"]
    for axis, title, domain in zip(("xaxis", "xaxis2", "xaxis3"), titles, PANELS, strict=True):
        figure.layout[axis].domain = domain
        title.x = sum(domain) / 2


def add_predictors(figure: go.Figure, rows: Sequence[Record], column: int) -> None:
    """A point with its interval a predictor, the chance level dotted."""
    for row in rows:
        if row["estimate"] is None:
            figure.add_annotation(
                text="undefined: one answer a prompt" if row["predictor"] == PROMPT else "undefined",
                x=0.72, y=PREDICTOR_NAMES[row["predictor"]], font={"size": 11, "color": NEUTRAL_COLOUR},
                row=1, col=column,
            )  # fmt: skip
            continue
        symbol, colour = PREDICTOR_STYLES.get(row["predictor"], ("circle", NEUTRAL_COLOUR))
        estimate, low, high = (row[name] for name in ("estimate", "low", "high"))
        excess = "" if row["excess"] is None else f"; activations {row['excess']:+.3f} better"
        figure.add_scatter(
            x=as_floats(np.array([estimate])), y=[PREDICTOR_NAMES[row["predictor"]]], mode="markers+text",
            name=row["predictor"], text=[f"{estimate:.2f}"], textposition="top center", textfont={"size": 11},
            cliponaxis=False,
            marker={"symbol": symbol, "color": colour, "size": 11},
            error_x={"type": "data", "symmetric": False, "array": as_floats(np.array([high - estimate])),
                     "arrayminus": as_floats(np.array([estimate - low])), "thickness": 2, "width": 6},
            hovertemplate=f"%{{y}}: %{{x:.3f}} [{low:.3f}, {high:.3f}]{excess}<extra></extra>", row=1, col=column,
        )  # fmt: skip
    figure.add_vline(x=0.5, line={"color": REFERENCE_COLOUR, "dash": "dot", "width": 1.5}, row=1, col=column)


def add_reason(figure: go.Figure, reason: str, column: int) -> None:
    """Why a panel is empty, in its middle."""
    figure.add_scatter(x=[None], y=[None], showlegend=False, row=1, col=column)
    number = "" if column == 1 else str(column)
    figure.add_annotation(
        text="not probed:<br>" + escape_text(reason, width=30), x=0.5, y=0.5, font={"color": NEUTRAL_COLOUR},
        xref=f"x{number} domain", yref=f"y{number} domain",
    )  # fmt: skip


def add_transfer(figure: go.Figure, transfer: Record, column: int) -> None:
    """Rows: the dimension that the probe was fitted on; columns: that whose answers it ranks."""
    if "reason" in transfer:
        add_reason(figure, transfer["reason"], column)
        return
    cells = {(row["train"], row["test"]): row for row in transfer["table"]}
    names = known_order([train for train, _ in cells])
    shown = [escape_text(display_name(name), width=11) for name in names]
    counted = [
        f"{text}<br>{cells[name, name]['misaligned']} / {cells[name, name]['aligned']}"
        for name, text in zip(names, shown, strict=True)
    ]
    rows = [[cells[train, test] for test in names] for train in names]
    values = [[float("nan") if row["auroc"] is None else row["auroc"] for row in line] for line in rows]
    figure.add_heatmap(
        x=shown, y=counted, z=as_floats(np.array(values)), zmin=0, zmax=1, colorscale=list(DIVERGING), xgap=2, ygap=2,
        text=[[transfer_text(row) for row in line] for line in rows], texttemplate="%{text}", textfont={"size": 10},
        customdata=[[escape_text(row["reason"]) or "95% interval over prompts" for row in line] for line in rows],
        hovertemplate="fitted on %{y}<br>read in %{x}: %{text}<br>%{customdata}<extra></extra>",
        colorbar=colour_bar("AUROC"),
        row=1, col=column,
    )  # fmt: skip
    for y, line in enumerate(rows):
        for x, row in enumerate(line):
            if row["auroc"] is None:
                grey = {"size": 11, "color": NEUTRAL_COLOUR}
                figure.add_annotation(
                    x=shown[x], y=counted[y], text=f"under<br>{LEAST_PROMPTS}", font=grey, row=1, col=column
                )
    figure.update_xaxes(title_text="Read in", showgrid=False, autotickangles=[0, 90], row=1, col=column)
    figure.update_yaxes(autorange="reversed", showgrid=False, categoryorder="trace", row=1, col=column)


def transfer_text(row: Record) -> str:
    return "" if row["auroc"] is None else f"{row['auroc']:.2f}<br>{row['low']:.2f} to<br>{row['high']:.2f}"


def factorisations(record: Record) -> go.Figure:
    """Left, the share of held-out variance that each method rebuilds; right, whether components return in halves."""
    rows = record["factorisations"]["table"]
    found = {(row["method"], row["measure"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    shown = [METHOD_NAMES[method] for method in methods]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.05,
        subplot_titles=(
            "Variance rebuilt of<br>held-out prompts",
            "Cosine of components between<br>halves of the prompts",
        ),
    )
    figure.update_annotations(font_size=13)

    def add(measure: str, name: str, symbol: str, colour: str, column: int) -> None:
        mean, low, high = (
            100 ** (column == 1) * np.array([found[method, measure][part] for method in methods], dtype=float)
            for part in ("mean", "low", "high")
        )
        figure.add_scatter(
            x=as_floats(mean), y=shown, mode="markers", name=name,
            marker={"symbol": symbol, "color": colour, "size": 12, "line": {"width": 2, "color": colour}},
            error_x={"type": "data", "symmetric": False, "array": as_floats(high - mean), "thickness": 2, "width": 6,
                     "arrayminus": as_floats(mean - low), "visible": bool((high > low).any())},
            hovertemplate="%{y}: %{x:.3g}<extra>" + name + "</extra>", row=1, col=column,
        )  # fmt: skip

    add("held_out", "rebuilt (whiskers: folds)", "circle", BEYOND_COLOUR, 1)
    add("stability_null", "Gaussian data of the same covariance", "circle-open", NEUTRAL_COLOUR, 2)
    add("stability", "data (whiskers: splits)", "diamond", BEYOND_COLOUR, 2)
    for column in (1, 2):
        figure.add_vline(x=0, line={"color": FAINT_COLOUR, "width": 1}, row=1, col=column)
    figure.update_xaxes(title_text="% of the variance", range=[0, 104], row=1, col=1)
    figure.update_xaxes(title_text="mean absolute cosine, matched one to one", range=[0, 1.04], row=1, col=2)
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(
        template=TEMPLATE,
        height=440,
        title_text=f"{describe_evidence(record)} · {rows[0]['components']} factors",
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0},
    )
