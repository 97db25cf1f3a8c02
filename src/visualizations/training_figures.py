"""A picture of a judge while it learns: what each token of a request adds to its margin, and whether removal agrees.

Nothing here looks at a model: the numbers come from `token_attribution`. All pages of a training share their range of
colours, which is handed in. What stands in the place of a picture that failed is here too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float

from src.utils.watching.epoch_metrics import Convergence
from src.utils.watching.token_attribution import RemovalCurves
from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import (
    LABEL_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
    TEXT_COLOUR,
)
from src.visualizations.panels import Spec, assembled, axes, axis_names, line, panel_title, stacked, titled

Label = Literal["safe", "unsafe"]

# blue and orange of Okabe and Ito, told apart by every kind of colour blindness
MARGIN_SCALE = [
    *([0.0, LABEL_COLOURS["safe"]], [0.25, "#7FB8D9"], [0.5, "#FFFFFF"], [0.75, "#EEA873"]),
    [1.0, LABEL_COLOURS["unsafe"]],
]
TEMPLATE_CELL = "#ECEEF1"
TOKENS_A_ROW = 12
REQUEST_ROW, TEMPLATE_ROW, CURVES, GAP = 52, 30, 260, 60  # pixels
NOTE_WIDTH = 105  # characters
LEAST_CHANGE = 0.1  # of the margin; below, neither the request nor a token of it adds to speak of
FULL_MARGIN = {"color": NEUTRAL_COLOUR, "dash": "dot", "width": 1}


@dataclass(frozen=True)
class SampleView:
    """One probe sample as the judge read it; `span` is the range of the request's tokens, the rest is template."""

    number: int
    label: Label
    tokens: Sequence[str]
    span: tuple[int, int]
    margin: float

    @property
    def predicted(self) -> Label:
        return "unsafe" if self.margin > 0 else "safe"

    @property
    def verdict(self) -> str:
        probability = 1 / (1 + np.exp(-self.margin))
        outcome = "right" if self.predicted == self.label else "wrong"
        return (
            f"The judge says {self.predicted} (margin {self.margin:+.2f} logits, P(unsafe) {probability:.3f}), "
            f"the label is {self.label}: {outcome}."
        )


def token_page(
    file_name: str,
    moment: str,
    view: SampleView,
    values: Float[np.ndarray, " seq"],
    baseline_margin: float,
    baseline_token: str,
    convergence: Convergence,
    curves: RemovalCurves,
    colour_range: float,
    note: str | None = None,
) -> FigurePage:
    """Signed attributions in logits over the request, the template apart, and the test by removal.

    `colour_range` is the absolute attribution that gets the full colour; `note` says what the budget cut.
    """
    start, end = view.span
    template = [*view.tokens[:start], *view.tokens[end:]]
    heights = [REQUEST_ROW * rows_of(end - start), TEMPLATE_ROW * rows_of(len(template)), CURVES]
    request, around, below = stacked(heights, GAP)
    left, right = (0.0, 0.455), (0.545, 1.0)
    hidden = ({"visible": False, "range": [-0.5, TOKENS_A_ROW - 0.5]}, {"visible": False, "autorange": "reversed"})
    margin_axis = {"title": titled("margin towards the<br>predicted class (logits)")}
    lost, at_random = curves.comprehensiveness, curves.random_comprehensiveness
    lost_kept, random_kept = curves.sufficiency, curves.random_sufficiency
    titles = (
        panel_title("The request, in reading order: what each token adds to the margin (logits)", 0, request[1]),
        panel_title("Template and special tokens: in the baseline too, so that each gets exactly 0", 0, around[1]),
        panel_title(f"Comprehensiveness (should be larger):<br>{compared(lost, at_random)}", 0, below[1]),
        panel_title(f"Sufficiency (should be smaller):<br>{compared(lost_kept, random_kept)}", right[0], below[1]),
    )
    lines = title_lines(values, view, baseline_margin, baseline_token, convergence, colour_range, note)
    top = 44 + 17 * len(lines)
    layout = {
        **axes(1, (0, 1), request, *hidden),
        **axes(2, (0, 1), around, *hidden),
        **axes(3, left, below, share_axis("% of the request's tokens removed"), margin_axis),
        **axes(4, right, below, share_axis("% of the request's tokens kept, all others removed"), {}),
        "annotations": list(titles),
        "shapes": [line(panel, FULL_MARGIN, y=curves.full) for panel in (3, 4)],
        "height": sum(heights) + 2 * GAP + top + 86,
        "margin": {"t": top, "b": 86, "l": 64, "r": 90},
        "legend": {"orientation": "h", "yref": "container", "y": 0.015, "yanchor": "bottom", "x": 0},
    }  # fmt: skip
    data = [
        request_cells(view, values, colour_range, request),
        template_cells(template),
        *removal_lines(curves.counts / curves.n_tokens, curves.removed, curves.random_removed, 3),
        *removal_lines(curves.counts / curves.n_tokens, curves.kept, curves.random_kept, 4),
    ]
    return FigurePage(
        file_name=file_name,
        title=f"{moment}, sample {view.number} ({view.label}): which tokens decide",
        sentence=f"{warning(convergence)}Orange tokens push the judge towards “unsafe”, blue ones towards “safe”. "
        f"{view.verdict} {reading(view.margin, baseline_margin, values)}",
        figure=assembled(data, layout, lines),
        command="",
    )


def warning(convergence: Convergence) -> str:
    if convergence.has_passed:
        return ""
    return "NOT CONVERGED: the values do not add up to the margin and are not to be read. "


def reading(margin: float, baseline_margin: float, values: Float[np.ndarray, " seq"]) -> str:
    """How the curves are read, or why there is little to read; tokens whose parts cancel each other are not little."""
    least = LEAST_CHANGE * abs(margin)
    if abs(margin - baseline_margin) < least and np.abs(values).max(initial=0.0) < least:
        return "It says much the same without any request: its tokens have little to add."
    return (
        "If it rests on the coloured tokens, its margin falls faster without them than without others (left: solid "
        "below dashed) and stands on them alone (right: solid above dashed)."
    )


def title_lines(
    values: Float[np.ndarray, " seq"],
    view: SampleView,
    baseline_margin: float,
    baseline_token: str,
    convergence: Convergence,
    colour_range: float,
    note: str | None,
) -> list[str]:
    start, end = view.span
    own = float(values[start:end].sum())
    outcome = "PASS" if convergence.has_passed else "FAIL"
    first = f"Margin with {baseline_token} in the request's place {baseline_margin:+.2f}, with it {view.margin:+.2f}; "
    second = f"Convergence {outcome}: sum off by {convergence.delta:+.4f} logits, all parts of the path by "
    return [
        first + f"its tokens add {own:+.2f}, the template {float(values.sum()) - own:+.2f}",
        second + f"{convergence.error:.4f}, allowed {convergence.tolerance:.3f} ({convergence.points} points)",
        f"Full colour: ±{colour_range:.2f} logits on all pages, the largest so far (where any converged, of those)",
        *(escape_text(note, width=NOTE_WIDTH).split("<br>") if note else []),
    ]


def compared(lost: float, at_random: float) -> str:
    return f"{lost:.2f} logits lost, at random {at_random:.2f}"


def share_axis(title: str) -> Spec:
    return {"title": titled(title), "range": [0, 103]}


def rows_of(n_tokens: int) -> int:
    return max(1, -(-n_tokens // TOKENS_A_ROW))


def cells(items: Sequence[object], empty: object, dtype: type) -> np.ndarray:
    """Items in reading order as a grid of `TOKENS_A_ROW` columns."""
    grid = np.full((rows_of(len(items)), TOKENS_A_ROW), empty, dtype=dtype)
    grid.flat[: len(items)] = items
    return grid


def shown_token(token: str, limit: int = 14) -> str:
    """A token as text; white space is given a sign, or it would look like an empty cell."""
    visible = token.replace("\n", "⏎")
    return escape_text("␣" * len(visible) if visible.isspace() else visible.strip(" "), limit=limit)


def request_cells(
    view: SampleView, values: Float[np.ndarray, " seq"], colour_range: float, domain: tuple[float, float]
) -> Spec:
    """The request's tokens as cells with their attribution in colour and in figures."""
    start, end = view.span
    own = as_floats(values[start:end])
    text = [f"{shown_token(token)}<br>{value:+.2f}" for token, value in zip(view.tokens[start:end], own, strict=True)]
    return {
        "type": "heatmap", "z": cells(own.tolist(), np.nan, np.float32), "text": cells(text, "", object),
        "texttemplate": "%{text}", "textfont": {"size": 12}, "colorscale": MARGIN_SCALE, "zmin": -colour_range,
        "zmax": colour_range, "xgap": 3, "ygap": 3, "hoverongaps": False, "name": "attribution",
        "hovertemplate": "%{text} logits<extra></extra>",
        "colorbar": {"title": {"text": "logits<br>+ unsafe<br>- safe", "font": {"size": 11}}, "thickness": 11,
                     "x": 1.01, "lenmode": "pixels", "len": 190, "y": domain[1], "yanchor": "top",
                     "tickfont": {"size": 11}},
        **axis_names(1),
    }  # fmt: skip


def template_cells(tokens: Sequence[str]) -> Spec:
    text = [shown_token(token, limit=9) for token in tokens]
    return {
        "type": "heatmap", "z": cells([0.0] * len(tokens), np.nan, np.float32), "text": cells(text, "", object),
        "texttemplate": "%{text}", "textfont": {"size": 10, "color": "#57606A"}, "showscale": False, "xgap": 3,
        "ygap": 3, "colorscale": [[0, TEMPLATE_CELL], [1, TEMPLATE_CELL]], "hoverongaps": False, "name": "template",
        "customdata": cells([shown_token(token, limit=40) for token in tokens], "", object),
        "hovertemplate": "%{customdata}: template, 0 logits<extra></extra>", **axis_names(2),
    }  # fmt: skip


def removal_lines(
    shares: Float[np.ndarray, " k"], own: Float[np.ndarray, " k"], random: Float[np.ndarray, "orders k"], panel: int
) -> list[Spec]:
    """Margins towards the predicted class, by attribution and in random order."""
    x, low, mean, high = (as_floats(v) for v in (100 * shares, random.min(0), random.mean(0), random.max(0)))
    place = {"type": "scatter", **axis_names(panel)}
    return [
        {"x": np.concatenate([x, x[::-1]]), "y": np.concatenate([high, low[::-1]]), "fill": "toself", "mode": "lines",
         "line": {"width": 0}, "fillcolor": "rgba(158,158,158,0.25)", "hoverinfo": "skip", "showlegend": False,
         "name": "random orders, band", **place},
        {"x": x, "y": mean, "mode": "lines+markers", "line": {"color": MISSING_COLOUR, "dash": "dash"},
         "marker": {"size": 5}, "name": f"{len(random)} random orders: mean, band from lowest to highest",
         "showlegend": panel == 3, "hovertemplate": "%{x:.0f}%: %{y:.2f} logits<extra>random order</extra>", **place},
        {"x": x, "y": as_floats(own), "mode": "lines+markers", "line": {"color": TEXT_COLOUR, "width": 2.5},
         "marker": {"size": 7}, "name": "in the order of their attribution", "showlegend": panel == 3,
         "hovertemplate": "%{x:.0f}%: %{y:.2f} logits<extra>by attribution</extra>", **place},
    ]  # fmt: skip


def placeholder_page(file_name: str, picture: str, reason: str) -> FigurePage:
    """What stands in the place of a picture that could not be drawn."""
    text = {"text": f"Not drawn: {escape_text(reason, width=90)}", "x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper",
            "showarrow": False, "font": {"size": 15, "color": REFERENCE_COLOUR}}  # fmt: skip
    layout = {"template": TEMPLATE, "height": 320, "xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return FigurePage(
        file_name=file_name,
        title=f"{picture.replace('_', ' ').capitalize()}: not drawn",
        sentence=f"This picture failed and the training went on. Reason: {reason}",
        figure=go.Figure({"layout": layout | {"annotations": [text]}}),
        command="",
    )
