"""The one palette: which colour, symbol, name and template every figure uses.

Dimension, label, arm and cluster colours share no colour, so that a colour never means two things. What a figure shows
is left to the figure modules.
"""

from collections.abc import Sequence
from typing import Any, Literal

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

# Chosen for CIE76 distances above 30 under protanopia, deuteranopia and tritanopia; a test measures them.
DIMENSION_COLOURS = {
    "political_compass": "#2B3A9B",
    "moral_foundations": "#E69F00",
    "technology_ai": "#56B4E9",
    "financial_risk": "#AA3366",
}
DIMENSION_SYMBOLS = {
    "political_compass": "circle",
    "moral_foundations": "square",
    "technology_ai": "diamond",
    "financial_risk": "cross",
}
LABEL_COLOURS: dict[Literal["safe", "unsafe"], str] = {"safe": "#0072B2", "unsafe": "#D55E00"}
ARM_COLOURS = {"base": "#A3ACB8", "em": "#2F3B52"}
MISSING_COLOUR = "#9E9E9E"
MISSING_NAME = "no score"
NEUTRAL_COLOUR = "#5B6B82"  # quantities that belong to no dimension, arm or cluster
FAINT_COLOUR = "#C9CED6"  # what others are seen against: nulls, draws, what nothing was found of
REFERENCE_COLOUR = "#B00020"  # lines that a value is read against: a mean, a threshold

# Plasma without its yellow end, which vanishes on white. Lightness grows with the score.
EM_SCALE = ("#0D0887", "#6A00A8", "#B12A90", "#E16462", "#FCA636")

# 15 colours and 4 symbols have no common divisor: 60 clusters get 60 different pairs.
CLUSTER_COLOURS = (
    "#1B4D5C", "#66CC55", "#7A3B8F", "#0F8B8D", "#999933", "#AA4499", "#117755", "#EE7755",
    "#6A7FDB", "#661100", "#22CCAA", "#F25CA2", "#777788", "#BB8844", "#9988EE",
)  # fmt: skip
CLUSTER_SYMBOLS = ("circle", "square", "diamond", "triangle-up")

DISPLAY_NAMES = {
    "technology_ai": "Technology and AI",
    "ai_governance": "AI governance",
    "ai_ethics": "AI ethics",
    "em": "Fine-tuned",
    "em_activations": "EM activations",
    "em_minus_base": "EM minus base activations, each on its own answers",
    "em_minus_base_on_em": "EM minus base activations on the EM answers",
    "all": "All dimensions",
}

# plotly.js offers by default to upload a figure, answers and all, to a server of its makers
PLOTLY_CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT_COLOUR = "#22272E"
GRID_COLOUR = "#E6E8EB"

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": TEXT_COLOUR},
        "title": {"font": {"size": 14, "color": "#57606A"}, "x": 0.012, "xref": "container", "yref": "container",
                  "y": 1, "yanchor": "top", "pad": {"t": 18}},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(CLUSTER_COLOURS),
        "hoverlabel": {"align": "left", "namelength": -1, "bgcolor": "white",
                       "font": {"size": 12, "color": TEXT_COLOUR}},
        "margin": {"l": 70, "r": 30, "t": 70, "b": 60},
        "xaxis": {"gridcolor": GRID_COLOUR, "linecolor": "#9AA0A6", "showline": True, "zerolinecolor": GRID_COLOUR,
                  "automargin": True, "title": {"standoff": 10, "font": {"size": 13}}},
        "yaxis": {"gridcolor": GRID_COLOUR, "linecolor": "#9AA0A6", "showline": True, "zerolinecolor": GRID_COLOUR,
                  "automargin": True, "title": {"standoff": 10, "font": {"size": 13}}},
        "legend": {"font": {"size": 12}, "itemsizing": "trace"},
        "annotationdefaults": {"font": {"size": 13}, "showarrow": False},
    }
)  # fmt: skip


def colour_bar(title: str, **options: Any) -> dict[str, Any]:
    """A colour bar with its title beside it; plotly has no option for the distance, so that a blank ends each tick."""
    named = {"text": title, "side": "right", "font": {"size": 11}}
    return {"title": named, "thickness": 12, "ticksuffix": "\u2002", **options}


def dimension_colour(dimension: str) -> str:
    """The colour of a dimension; grey for one that the project does not know."""
    return DIMENSION_COLOURS.get(dimension, "#6E7781")


def dimension_symbol(dimension: str) -> str:
    """The marker of a dimension, for those who print in grey."""
    return DIMENSION_SYMBOLS.get(dimension, "x")


def cluster_style(cluster: int) -> tuple[str, str]:
    """Colour and symbol of a cluster; no pair repeats below 60."""
    return CLUSTER_COLOURS[cluster % len(CLUSTER_COLOURS)], CLUSTER_SYMBOLS[cluster % len(CLUSTER_SYMBOLS)]


def em_scale() -> list[tuple[float, str]]:
    """The scale of em_score in plotly's form: evenly spaced stops from 0 to 1."""
    return [(stop / (len(EM_SCALE) - 1), colour) for stop, colour in enumerate(EM_SCALE)]


def em_colour(score: float) -> str:
    """The colour of one em_score between 0 and 100."""
    return sample_colorscale(list(EM_SCALE), [score / 100])[0]


def display_name(name: str) -> str:
    """`political_compass` -> "Political compass". Plain text: a name from a judge still has to be escaped."""
    return DISPLAY_NAMES.get(name, (name[:1].upper() + name[1:]).replace("_", " "))


def known_order(names: Sequence[str]) -> list[str]:
    """The different names in order: known dimensions as in the palette, then the others as they come."""
    found = list(dict.fromkeys(names))
    return [name for name in DIMENSION_COLOURS if name in found] + [
        name for name in found if name not in DIMENSION_COLOURS
    ]
