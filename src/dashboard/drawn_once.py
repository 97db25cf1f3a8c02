"""A figure in the form in which streamlit and plotly draw it once.

Streamlit hands every figure to plotly twice, in two copies: before it has measured the room for it, and after. Plotly
draws the second one, too, unless the size was right the first time, to the pixel, a mark says that the data are the
same, and nothing in it is compared by identity, as templates and binary arrays are. Half a second of four pictures.
"""

import hashlib
import json
import re
from typing import Any

import numpy as np
import plotly.graph_objects as go

from src.dashboard.paired_scales import numbers

Spec = dict[str, Any]
AXIS = re.compile(r"([xy]axis)\d*")
ORIENTED = frozenset(("bar", "box", "histogram", "violin"))
DEFAULT_HEIGHT = 450  # plotly's own


def drawn_once(figure: Spec, width: int) -> go.Figure:
    """The figure as it looks, `width` pixels wide: its template written out, arrays as lists, marked."""
    drawn = plain_arrays(without_template(figure))
    layout = drawn["layout"]
    size = {"width": width, "height": round(layout.get("height", DEFAULT_HEIGHT))}
    mark = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    made = go.Figure({**drawn, "layout": {**layout, **size, "datarevision": mark}})
    made.layout.template = None  # else plotly gives it the default one
    return made


def without_template(figure: Spec) -> Spec:
    """The figure with what the template says of its layout in the layout itself.

    A template's colours for traces that name none are left out: all figures here name theirs. A grid colour in a
    layout asks for a grid, one in a template does not: along bars, where plotly draws none, none is asked for.
    """
    layout = dict(figure["layout"])
    defaults = dict(layout.pop("template", {}).get("layout", {}))
    defaults.pop("colorway", None)
    axes = {kind: defaults.pop(kind, {}) for kind in ("xaxis", "yaxis")}
    note = defaults.pop("annotationdefaults", {})
    written = filled(layout, defaults)
    along_bars = {position_axis(trace) for trace in figure["data"] if trace.get("type") in ORIENTED}
    for name in {*axes, *written}:
        if axis := AXIS.fullmatch(name):
            bare = {"showgrid": False, "zeroline": False} if name in along_bars else {}
            written[name] = filled(written.get(name, {}), {**bare, **axes[axis[1]]})
    if "annotations" in written:
        written["annotations"] = [filled(one, note) for one in written["annotations"]]
    return {**figure, "layout": written}


def position_axis(trace: Spec) -> str:
    """The axis, by its name in a layout, along which bars stand beside each other."""
    letter = "y" if trace.get("orientation") == "h" else "x"
    return f"{letter}axis{trace.get(f'{letter}axis', letter)[1:]}"


def filled(own: Any, defaults: Any) -> Any:
    """What is there, and from the defaults what is not, at any depth of objects."""
    if not (isinstance(own, dict) and isinstance(defaults, dict)):
        return own
    return {**defaults, **{name: filled(value, defaults.get(name)) for name, value in own.items()}}


def plain_arrays(value: Any) -> Any:
    """Plotly's JSON with its base64 arrays as lists, what is not a finite number null, as plotly writes it."""
    if isinstance(value, dict):
        if "bdata" in value:
            array = np.asarray(numbers(value)).astype(object)
            array[~np.isfinite(array.astype(float))] = None
            return array.tolist()
        return {name: plain_arrays(item) for name, item in value.items()}
    return [plain_arrays(item) for item in value] if isinstance(value, list) else value
