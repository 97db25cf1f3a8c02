"""A figure as it would look from further away: everything that is given in pixels times one factor.

Pages are drawn for a width of 760 pixels and more; half of a laptop's screen is less. Shrunken, a figure keeps its
proportions there, and its hover texts their size.
"""

import copy
from typing import Any

from src.dashboard.charts import Spec

PIXELS = frozenset(
    ("size", "height", "standoff", "xshift", "yshift", "thickness", "entrywidth", "ax", "ay", "xpad", "ypad", "ticklen")
)
MARGINS = ("l", "r", "t", "b")
KEPT = frozenset(("hoverlabel", "modebar"))
DEFAULT_FONT, DEFAULT_HEIGHT = 12.0, 450.0  # plotly's own
SMALLEST = 7.0  # no text gets smaller


def shrunken(figure: Spec, factor: float) -> Spec:
    """A copy with fonts, markers, margins and heights times `factor`; data and axes stay."""
    layout = shrunken_value(copy.deepcopy(figure["layout"]), factor)
    layout.setdefault("font", {}).setdefault("size", max(SMALLEST, factor * font_size(figure["layout"])))
    layout.setdefault("height", factor * DEFAULT_HEIGHT)
    return {
        **figure,
        "data": [shrunken_value(copy.deepcopy(trace), factor) for trace in figure["data"]],
        "layout": layout,
    }


def shrunken_value(value: Any, factor: float) -> Any:
    if isinstance(value, list):
        return [shrunken_value(item, factor) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: item
        if name in KEPT
        else resized(name, item, factor)
        if name in PIXELS
        else {**item, **{side: factor * item[side] for side in MARGINS if is_number(item.get(side))}}
        if name in ("margin", "pad") and isinstance(item, dict)
        else shrunken_value(item, factor)
        for name, item in value.items()
    }


def resized(name: str, value: Any, factor: float) -> Any:
    """A length in pixels, or a list of them; what is in another unit, such as an array in base64, stays."""
    if isinstance(value, list):
        return [resized(name, item, factor) for item in value]
    if not is_number(value):
        return value
    return max(min(SMALLEST, value), factor * value) if name == "size" else factor * value


def font_size(layout: Spec) -> float:
    size = layout.get("template", {}).get("layout", {}).get("font", {}).get("size")
    return float(size) if is_number(size) else DEFAULT_FONT


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
