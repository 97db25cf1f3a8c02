"""Panels of a figure as plain data, put together in one go.

Plotly checks a figure at each addition; one with forty additions takes half a second to build, and pictures that are
drawn while a model learns must not cost that.
"""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from src.visualizations.palette import TEMPLATE

Spec = dict[str, Any]
SMALL = {"size": 12}


def stacked(heights: Sequence[float], gap: float) -> list[tuple[float, float]]:
    """Domains of panels one below the other, the first on top, in shares of the height that they take together."""
    total = sum(heights) + gap * (len(heights) - 1)
    domains, top = [], float(total)
    for height in heights:
        domains.append((max(0.0, (top - height) / total), top / total))
        top -= height + gap
    return domains


def axis_names(panel: int) -> Spec:
    """What a trace says of its panel, counted from 1."""
    end = "" if panel == 1 else str(panel)
    return {"xaxis": f"x{end}", "yaxis": f"y{end}"}


def axes(panel: int, x_domain: Sequence[float], y_domain: Sequence[float], x: Spec, y: Spec) -> Spec:
    """The two axes of a panel, for a layout."""
    end = "" if panel == 1 else str(panel)
    names = axis_names(panel)
    return {
        f"xaxis{end}": {"domain": list(x_domain), "anchor": names["yaxis"], **x},
        f"yaxis{end}": {"domain": list(y_domain), "anchor": names["xaxis"], **y},
    }


def titled(text: str) -> Spec:
    """An axis title."""
    return {"text": text, "font": SMALL, "standoff": 8}


def panel_title(text: str, x: float, y: float) -> Spec:
    """What stands above a panel, at its left."""
    return {
        "text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
        "showarrow": False, "font": {"size": 13}, "yshift": 2, "align": "left",
    }  # fmt: skip


def line(panel: int, style: Spec, x: Sequence[float] | None = None, y: float | None = None) -> Spec:
    """A line across a panel: at height `y`, or at both ends of `x`."""
    names = axis_names(panel)
    if y is not None:
        ends = {"xref": f"{names['xaxis']} domain", "yref": names["yaxis"], "x0": 0, "x1": 1, "y0": y, "y1": y}
    else:
        assert x is not None
        ends = {"xref": names["xaxis"], "yref": f"{names['yaxis']} domain", "x0": x[0], "x1": x[1], "y0": 0, "y1": 1}
    return {"type": "line", "line": style, **ends}


def assembled(data: Sequence[Spec], layout: Spec, title_lines: Sequence[str], colour: str = "#57606A") -> go.Figure:
    """The figure, its height given in the layout, the lines of its title above everything.

    A panel without data gets an empty trace: plotly draws no axes without one, and a text in it lies astray.
    """
    title = {"text": "<br>".join(title_lines), "y": 1, "yanchor": "top", "pad": {"t": 12},
             "font": {"size": 12.5, "color": colour}}  # fmt: skip
    used = {trace.get("xaxis", "x") for trace in data}
    names = [name.replace("axis", "") for name in layout if name.startswith("xaxis")]
    empty = [
        {"type": "scatter", "x": [None], "y": [None], "showlegend": False, "xaxis": name, "yaxis": f"y{name[1:]}"}
        for name in names
        if name not in used
    ]
    return go.Figure({"data": [*data, *empty], "layout": {"template": TEMPLATE, "title": title, **layout}})
