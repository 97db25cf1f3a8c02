"""A picture of a judge while it learns: the residual stream by layer and token, and how far it has moved.

Nothing here looks at a model: the numbers come from `layer_activation`. All pages of a training share their ranges of
colours, which are handed in.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from src.utils.watching.layer_activation import LayerChange
from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import LABEL_COLOURS, REFERENCE_COLOUR, TEXT_COLOUR
from src.visualizations.panels import Spec, assembled, axes, axis_names, line, panel_title, titled
from src.visualizations.training_figures import NOTE_WIDTH, Label, SampleView, shown_token

MOST_NAMED = 18  # tokens under a heat map: in a window of 800 pixels their slanted names do not touch
LAYER_ROW = 26  # pixels
PANELS = ((0.0, 0.335), (0.405, 0.74), (0.82, 1.0))
CHANGE_SCALE = [[0, "#FFFFFF"], [0.02, "#FBE9DC"], [1, "#8A3A00"]]  # what has moved at all is never white
BOUNDARY = {"color": TEXT_COLOUR, "dash": "dash", "width": 1.6}
REQUEST = {"color": "#6E7781", "width": 1, "dash": "dot"}


def layer_page(
    file_name: str,
    moment: str,
    view: SampleView,
    norms: Float[np.ndarray, "layers seq"],
    change: LayerChange | None,
    last_token: Mapping[Label, Float[np.ndarray, "samples layers"]],
    n_frozen: int,
    norm_range: tuple[float, float],
    change_range: float,
    note: str | None = None,
) -> FigurePage:
    """Norms and changes by layer and token, and the change where the margin is read over a larger sample.

    `n_frozen` layers, from the embeddings on, must not move; `change` is None without a baseline. `norm_range` is in
    powers of ten; `change_range` is the relative change that gets the full colour.
    """
    n_layers = len(norms)
    names = ["embeddings", *(f"block {block}" for block in range(n_layers - 1))]
    faults = change.faults(n_frozen) if change is not None else []
    lines = [
        frozen_line(change, faults, n_frozen, names),
        "Colours: shortest to longest vector, 0 to largest change, of any sample and epoch so far, on all pages",
        *(escape_text(note, width=NOTE_WIDTH).split("<br>") if note else []),
    ]
    top, height = 58 + 17 * len(lines), max(230, LAYER_ROW * n_layers)
    titles = ("Length of the residual stream", "How far it has moved since epoch 0", "Last token,<br>larger sample")
    has_boundary = 0 < n_frozen < n_layers
    layout = {
        **axes(1, PANELS[0], (0, 1), token_axis(view), {"title": titled("residual stream after"), "matches": "y3"}),
        **axes(2, PANELS[1], (0, 1), token_axis(view), {"showticklabels": False, "matches": "y3"}),
        **axes(3, PANELS[2], (0, 1), {"title": titled("% moved"), "rangemode": "tozero"},
               {"showticklabels": False, "range": [-0.5, n_layers - 0.5], "type": "category",
                "categoryarray": names, "categoryorder": "array"}),
        "annotations": [
            *(panel_title(title, panel[0], 1) for title, panel in zip(titles, PANELS, strict=True)),
            *(boundary_names(n_frozen) if has_boundary else []),
        ],
        "shapes": [
            *(line(panel, BOUNDARY, y=n_frozen - 0.5) for panel in (1, 2, 3) if has_boundary),
            *(line(panel, REQUEST, x=(at - 0.5, at - 0.5)) for panel in (1, 2) for at in view.span),
        ],
        "height": height + top + 130,
        "margin": {"t": top, "b": 130, "l": 92, "r": 24},
        "legend": {"orientation": "h", "yref": "container", "y": 0.015, "yanchor": "bottom", "x": 1,
                   "xanchor": "right"},
    }  # fmt: skip
    data = [
        norm_cells(view, norms, names, norm_range),
        *([change_cells(view, change, names, change_range)] if change is not None else []),
        *last_token_lines(last_token, names),
    ]
    wrong = "SOMETHING IS WRONG: frozen layers have moved. " if faults else ""
    frozen = "Below the dashed line the layers are frozen and must stay white: not a bit may move. "
    return FigurePage(
        file_name=file_name,
        title=f"{moment}, sample {view.number} ({view.label}): what the training moves, layer by layer",
        sentence=f"{wrong}{frozen if has_boundary else ''}The colour (middle) shows at which layers and tokens the "
        f"fine-tune has changed what is computed. {view.verdict}",
        figure=assembled(data, layout, lines, REFERENCE_COLOUR if faults else "#57606A"),
        command="",
    )


def frozen_line(change: LayerChange | None, faults: Sequence[int], n_frozen: int, names: Sequence[str]) -> str:
    """What the free test says: frozen layers must not have moved by a bit."""
    if change is None:
        return "No baseline: the training was not watched from its beginning, so that no change can be shown"
    if faults:
        worst = max(faults, key=lambda layer: change.largest[layer])
        return (
            f"SOMETHING IS WRONG: {len(faults)} of {n_frozen} frozen layers have moved since epoch 0, most at "
            f"{names[worst]} (a number changed by {change.largest[worst]:.3g})"
        )
    if not n_frozen:
        return "Nothing is frozen: the embeddings learn too"
    return f"Frozen layers ({names[0]} to {names[n_frozen - 1]}): change exactly 0 at every token, as it must be"


def norm_cells(
    view: SampleView, norms: Float[np.ndarray, "layers seq"], names: Sequence[str], norm_range: tuple[float, float]
) -> Spec:
    marks = [1, 2, 5] if norm_range[1] - norm_range[0] < 2 else [1]
    ticks = [m * 10.0**e for e in range(int(np.floor(norm_range[0])), int(np.ceil(norm_range[1])) + 1) for m in marks]
    return {
        "type": "heatmap", "z": as_floats(np.log10(np.maximum(norms, 1e-12))), "x": list(range(norms.shape[1])),
        "y": list(names), "customdata": as_floats(norms), "text": hover_names(view, names), "zmin": norm_range[0],
        "zmax": norm_range[1], "colorscale": "Cividis", "name": "norm",
        "hovertemplate": "%{text}: %{customdata:.3g}<extra></extra>",
        "colorbar": {**colourbar("norm", PANELS[0][1]), "tickvals": as_floats(np.log10(ticks)),
                     "ticktext": [f"{tick:g}" for tick in ticks]},
        **axis_names(1),
    }  # fmt: skip


def change_cells(view: SampleView, change: LayerChange, names: Sequence[str], change_range: float) -> Spec:
    return {
        "type": "heatmap", "z": as_floats(100 * change.relative), "x": list(range(change.relative.shape[1])),
        "y": list(names), "text": hover_names(view, names), "zmin": 0, "zmax": max(100 * change_range, 1e-6),
        "colorscale": CHANGE_SCALE, "name": "change", "colorbar": colourbar("% moved", PANELS[1][1]),
        "hovertemplate": "%{text}: %{z:.3g}% of its length at epoch 0<extra></extra>", **axis_names(2),
    }  # fmt: skip


def hover_names(view: SampleView, names: Sequence[str]) -> list[list[str]]:
    return [[f"{shown_token(token)}, after {where}" for token in view.tokens] for where in names]


def colourbar(title: str, x: float) -> Spec:
    return {"title": {"text": title, "side": "top", "font": {"size": 11}}, "x": x + 0.004, "thickness": 9, "len": 1.0,
            "tickfont": {"size": 10}, "xpad": 2, "ypad": 0}  # fmt: skip


def last_token_lines(
    last_token: Mapping[Label, Float[np.ndarray, "samples layers"]], names: Sequence[str]
) -> list[Spec]:
    """Median change at the last token by class, with the range of the middle 80% of samples."""
    found = []
    for label, moved in last_token.items():
        if not len(moved):
            continue
        low, middle, high = (as_floats(100 * np.quantile(moved, at, axis=0)) for at in (0.1, 0.5, 0.9))
        found.append({
            "type": "scatter", "x": middle, "y": list(names), "mode": "lines+markers", "marker": {"size": 7},
            "line": {"color": LABEL_COLOURS[label]},
            "name": f"{len(moved)} {label} prompts: median, 10% to 90%",
            "error_x": {"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low,
                        "thickness": 1, "width": 3},
            "hovertemplate": "%{y}: median %{x:.3g}%<extra>" + label + "</extra>", **axis_names(3),
        })  # fmt: skip
    return found


def boundary_names(n_frozen: int) -> list[Spec]:
    """What is on either side of the line between frozen and fine-tuned."""
    place = {"x": 1, "xref": "x3 domain", "xanchor": "right", "y": n_frozen - 0.5, "yref": "y3", "showarrow": False,
             "font": {"size": 12, "color": TEXT_COLOUR}, "bgcolor": "rgba(255,255,255,0.8)"}  # fmt: skip
    return [
        place | {"text": "fine-tuned ↑", "yanchor": "bottom"},
        place | {"text": "frozen ↓", "yanchor": "top"},
    ]


def token_axis(view: SampleView) -> Spec:
    """Tokens under a heat map: those of the request, of many only some, and the last one, at which the margin is read.

    The template around them has no names, which are long and always the same.
    """
    start, end = view.span
    last = len(view.tokens) - 1
    named = [*range(start, end, max(1, -(-(end - start) // MOST_NAMED)))]
    named += [last] if last not in named else []
    return {
        "title": titled("token (request: between dots)"), "tickvals": named, "tickangle": -65,
        "ticktext": [shown_token(view.tokens[at]) for at in named], "tickfont": {"size": 10},
        "range": [-0.5, last + 0.5],
    }  # fmt: skip
