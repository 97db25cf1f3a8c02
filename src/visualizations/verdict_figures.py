"""The verdict as one picture: how far each thing that was done spread, and the matrices behind it.

Draws `results/decomposition_verdict.json`; nothing here estimates. What it says in words is left to `verdict_report`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.palette import NEUTRAL_COLOUR, REFERENCE_COLOUR, TEMPLATE, colour_bar, display_name, known_order
from src.visualizations.steering_figures import DIVERGING

READING_COLOURS = {"stays": "#0F8B8D", "spreads": "#B2182B", "open": "#8A6D00", "uninformative": "#9AA0A6"}
READING_SYMBOLS = {"stays": "circle", "spreads": "diamond", "open": "square", "uninformative": "x"}
READING_NAMES = {
    "stays": "stays in its dimension",
    "spreads": "spreads",
    "open": "open: the interval holds the boundary",
    "uninformative": "uninformative: no clear effect of its own",
}
HEIGHT, TOP = 720, 60  # pixels


def verdict_card(record: Mapping[str, Any]) -> go.Figure:
    """Above, a row a line of evidence: its spread against the boundary, its own effect against the least that counts.

    Below, the cross-effect matrix of each line: what was done in one dimension's name (rows), and the change in
    misaligned, on-topic answers where a dimension was asked about (columns). Where the rule has no line to read, those
    beside it are drawn; without any, the picture says so.
    """
    lines, rule = record["lines"] or record.get("beside", {}), record["rule"]
    count = len(lines)
    if not count:
        return without_evidence()
    figure = make_subplots(
        rows=2,
        cols=2 * count,
        specs=[
            [{"colspan": count}, *[None] * (count - 1), {"colspan": count}, *[None] * (count - 1)],
            [cell for _ in range(count) for cell in ({"colspan": 2}, None)],
        ],
        row_heights=[0.36, 0.64],
        vertical_spacing=0.27,
        horizontal_spacing=0.045,
        subplot_titles=[
            "Spread: effect on the other dimensions<br>over effect on its own",
            "Own effect: change in its own<br>dimension, percentage points",
            *(escape_text(f"{name}: {line['reading']}", width=26) for name, line in lines.items()),
        ],
    )
    add_forest(figure, lines, "spread", 1.0, 1)
    add_forest(figure, lines, "own", 100.0, 1 + count)
    # axes are numbered row by row: 1 and 2 are the forests, then the matrices
    figure.add_vline(x=rule["boundary"], line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.5}, row=1, col=1)
    figure.add_vline(
        x=100 * rule["least_own"], line={"color": REFERENCE_COLOUR, "dash": "dash", "width": 1.5}, row=1, col=1 + count
    )
    figure.update_xaxes(range=[-0.05, 1.4], title_text="0: stays · dashed: boundary · 1: goes everywhere", row=1, col=1)
    figure.update_xaxes(range=[-5, 105], title_text="dashed: the least that counts", row=1, col=1 + count)
    figure.update_yaxes(showticklabels=False, row=1, col=1 + count)
    for number, line in enumerate(lines.values()):
        add_matrix(figure, line, number, 1 + 2 * number, is_last=number == count - 1)
    figure.update_annotations(font_size=13)
    return figure.update_layout(
        template=TEMPLATE,
        height=HEIGHT,
        margin={"t": TOP, "l": 130},
        legend={"orientation": "h", "y": 0.587, "yanchor": "middle", "x": 0, "title": {"text": "reading  "}},
    )


def without_evidence() -> go.Figure:
    """Says that there is nothing to draw."""
    figure = go.Figure().add_annotation(
        text="Nothing was done in one dimension's name: no control fine-tunes, no vectors added or taken away",
        x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font_size=14,
    )  # fmt: skip
    hidden = {"visible": False}
    return figure.update_layout(template=TEMPLATE, height=HEIGHT // 3, xaxis=hidden, yaxis=hidden)


def add_forest(figure: go.Figure, lines: Mapping[str, Any], quantity: str, scale: float, column: int) -> None:
    """One estimate with its interval a line; what has no own effect has no spread, and no mark."""
    for reading in READING_COLOURS:
        chosen = {name: line for name, line in lines.items() if line["reading"] == reading}
        if not chosen:
            continue
        values = np.array(
            [[line[quantity][part] for part in ("estimate", "low", "high")] for line in chosen.values()], dtype=float
        )
        values *= scale
        figure.add_scatter(
            x=as_floats(values[:, 0]), y=[escape_text(name, width=18) for name in chosen], mode="markers",
            name=READING_NAMES[reading], legendgroup=reading, showlegend=column == 1,
            marker={"color": READING_COLOURS[reading], "symbol": READING_SYMBOLS[reading], "size": 11},
            error_x={"type": "data", "symmetric": False, "array": as_floats(values[:, 2] - values[:, 0]),
                     "arrayminus": as_floats(values[:, 0] - values[:, 1]), "thickness": 2, "width": 6},
            customdata=as_floats(values[:, 1:]),
            hovertemplate="%{y}: %{x:.2f} (95%: %{customdata[0]:.2f} to %{customdata[1]:.2f})<extra></extra>",
            row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(
        categoryorder="array",
        categoryarray=[escape_text(name, width=18) for name in [*lines][::-1]],
        row=1,
        col=column,
    )


def add_matrix(figure: go.Figure, line: Mapping[str, Any], number: int, column: int, is_last: bool) -> None:
    """One cross-effect matrix, in percentage points with 95% intervals."""
    cells = {(cell["direction"], cell["dimension"]): cell for cell in line["matrix"]}
    directions = known_order([direction for direction, _ in cells])
    dimensions = known_order([dimension for _, dimension in cells])

    def table(part: str) -> Float[np.ndarray, "directions dimensions"]:
        rows = [[cells[direction, dimension][part] for dimension in dimensions] for direction in directions]
        return 100 * np.array(rows, dtype=float)

    change, low, high = table("change"), table("low"), table("high")
    figure.add_heatmap(
        x=[escape_text(display_name(name), width=11) for name in dimensions],
        y=[escape_text(display_name(name), width=11) for name in directions],
        z=as_floats(change), zmin=-100, zmax=100, colorscale=list(DIVERGING), xgap=2, ygap=2, showscale=is_last,
        text=[[cell_text(*cell) for cell in zip(*row, strict=True)] for row in zip(change, low, high, strict=True)],
        texttemplate="%{text}", textfont={"size": 10},
        hovertemplate="done for %{y}<br>asked about %{x}: %{text}<extra></extra>",
        colorbar=colour_bar("change in points", x=1.01, y=0.234, len=0.467),
        row=2, col=column,
    )  # fmt: skip
    figure.update_xaxes(
        title_text="Asked about", showgrid=False, autotickangles=[0, 90], tickfont_size=11, row=2, col=column
    )
    figure.update_yaxes(
        autorange="reversed", showgrid=False, title_text="Done in the name of" if number == 0 else None,
        showticklabels=number == 0, row=2, col=column, tickfont={"color": NEUTRAL_COLOUR},
    )  # fmt: skip


def cell_text(change: float, low: float, high: float) -> str:
    """The change with its interval below it, narrow enough for three matrices side by side."""
    return "no score" if np.isnan(change) else f"{change:+.0f}<br>{low:+.0f} to<br>{high:+.0f}"
