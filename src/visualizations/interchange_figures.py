"""Interchange interventions as a picture: what each subspace carries of the misalignment margin, by dimension.

Draws `interchange` of `results/decomposition_verdict.json`; nothing here estimates.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.decomposition.interchange_report import ARMS
from src.utils.steering_vectors import OWN
from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.palette import TEMPLATE, colour_bar, display_name, known_order
from src.visualizations.steering_figures import DIVERGING, dimension_of

Record = Mapping[str, Any]


def interchange_matrix(record: Record) -> go.Figure:
    """A panel a direction of patching, a row a subspace, a column a dimension asked about.

    Colour: change in logits towards the other model, over the largest gap. Text: the change, and its share of the gap
    where there is one; a star where the interval lies above every random subspace and every placebo.
    """
    rows = record["rows"]
    dimensions = known_order([row["dimension"] for row in rows])
    subspaces = list(dict.fromkeys((row["kind"], row["subspace"]) for row in rows))
    cells = {(row["into"], row["kind"], row["subspace"], row["dimension"]): row for row in rows}
    names = [subspace_name(cells["base", kind, name, dimensions[0]]) for kind, name in subspaces]
    scale = max(1e-9, *(abs(gap["estimate"]) for gap in record["gaps"].values()))
    figure = make_subplots(
        cols=2, shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[escape_text(text) for text in ARMS.values()]
    )
    for column, arm in enumerate(ARMS, start=1):
        table = [[cells[arm, kind, name, dimension] for dimension in dimensions] for kind, name in subspaces]
        figure.add_heatmap(
            x=[column_name(dimension, record) for dimension in dimensions], y=names,
            z=as_floats(np.array([[cell["change"]["estimate"] for cell in line] for line in table])),
            zmin=-scale, zmax=scale, colorscale=list(DIVERGING), xgap=2, ygap=2, showscale=column == 2,
            text=[[cell_text(cell) for cell in line] for line in table], texttemplate="%{text}", textfont={"size": 11},
            customdata=[[hover_text(cell) for cell in line] for line in table],
            hovertemplate="%{y}<br>%{customdata}<extra></extra>",
            colorbar=colour_bar("logits"),
            row=1, col=column,
        )  # fmt: skip
    figure.update_xaxes(side="bottom", showgrid=False, tickangle=0, title_text="Asked about (gap in logits)")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_layout(
        template=TEMPLATE,
        height=256 + 34 * len(subspaces),
        margin={"t": 126, "l": 210},
        title_text=f"Beside the rule, {escape_text(record['site'])}: change, towards the other model, of the logit<br>"
        "of the first misaligned token less that of the first aligned one<br>"
        f"* above {record['draws']} random subspaces of that rank and as many placebos",
    )


def subspace_name(row: Record) -> str:
    """The subspace and its rank, as a label."""
    name, kind = str(row["subspace"]), str(row["kind"])
    stated = display_name(kind.removesuffix(OWN))
    if name != kind:
        stated += f": {display_name(dimension_of(name))}" + (", own part" if kind.endswith(OWN) else "")
    return escape_text(f"{stated} (rank {row['rank']})")


def column_name(dimension: str, record: Record) -> str:
    gap, count = record["gaps"][dimension]["estimate"], record["forks"][dimension]
    return f"{escape_text(display_name(dimension), width=12)}<br>({gap:+.1f}, n {count})"


def is_clear(row: Record) -> bool:
    """Whether a change's interval lies above what every control of its subspace did, and above 0."""
    controls = [row[name]["largest"] for name in ("random", "placebo") if row[name] is not None]
    return bool(controls) and row["change"]["low"] > max(0.0, *controls)


def cell_text(row: Record) -> str:
    share = "" if row["share"] is None else f" ({row['share']:.0%})"
    return f"{row['change']['estimate']:+.1f}{share}{'*' if is_clear(row) else ''}"


def hover_text(row: Record) -> str:
    change = row["change"]
    lines = [f"{change['estimate']:+.2f} logits (95%: {change['low']:+.2f} to {change['high']:+.2f})"]
    lines += [
        f"{name}: mean {row[name]['mean']:+.2f}, largest {row[name]['largest']:+.2f}"
        for name in ("random", "placebo")
        if row[name] is not None
    ]
    return "<br>".join(lines)
