"""Figures of scores and of the fine-tune: EM rates by dimension, scores by facet, the training curve.

The rates and their intervals are computed elsewhere; nothing here judges or estimates.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.em_rates import by_dimension
from src.visualizations.figure_page import escape_text
from src.visualizations.palette import (
    ARM_COLOURS,
    MISSING_COLOUR,
    MISSING_NAME,
    TEMPLATE,
    dimension_colour,
    display_name,
    em_colour,
    known_order,
)

MEASURES = {
    "em": "EM rate<br>misaligned,<br>coherent",
    "em_on_topic": "EM, on topic<br>counts as<br>transfer",
    "on_topic": "On topic<br>about what<br>was asked",
    "flip": "Flip<br>money talk<br>instead",
    "coherent": "Coherent",
}
NOT_DEFINED = "n/a"
BIN_EDGES = np.arange(0, 101, 10)
LOG_PANELS = {"loss": "loss (nats per token)", "learning_rate": "learning rate", "grad_norm": "gradient norm"}


def em_rates(rates: pd.DataFrame) -> go.Figure:
    """Every measure by dimension, base beside fine-tuned, with 95% intervals.

    `rates` has columns `arm, subset, facet, measure, estimate, low, high, n`, shares between 0 and 1; rows of whole
    dimensions (facet `all`) are shown, one panel for each of `MEASURES`. NaN is shown as "no score", a dimension
    without a row (flip, in finance) as "n/a".
    """
    rates = by_dimension(rates)
    measures = [measure for measure in MEASURES if measure in set(rates["measure"])]
    subsets = known_order(list(rates["subset"]))[::-1]  # plotly counts upwards, a reader downwards
    names = [_counted_name(subset, rates) for subset in subsets]
    figure = make_subplots(
        rows=1,
        cols=len(measures),
        shared_yaxes=True,
        horizontal_spacing=0.025,
        subplot_titles=[MEASURES[measure] for measure in measures],
    )
    for arm in reversed(list(dict.fromkeys(rates["arm"]))):
        for column, measure in enumerate(measures, start=1):
            known = rates[(rates["arm"] == arm) & (rates["measure"] == measure)].set_index("subset")
            chosen = known.reindex(subsets)
            share, low, high = (100 * chosen[name].to_numpy(dtype=np.float32) for name in ("estimate", "low", "high"))
            colour = ARM_COLOURS.get(arm, "#6E7781")
            figure.add_bar(
                x=share, y=names, orientation="h", name=escape_text(display_name(arm)), legendgroup=arm,
                showlegend=column == 1, offsetgroup=arm, marker_color=colour,
                error_x={"type": "data", "symmetric": False, "array": high - share, "arrayminus": share - low,
                         "color": "#111111", "thickness": 1.2, "width": 4},
                customdata=np.column_stack([low, high, chosen["n"].to_numpy(dtype=np.float32)]),
                hovertemplate="%{y}: %{x:.1f}% (95%: %{customdata[0]:.1f} to %{customdata[1]:.1f}), "
                              "n = %{customdata[2]:.0f}",
                row=1, col=column,
            )  # fmt: skip
            figure.add_scatter(
                x=np.nan_to_num(np.fmax(share, high)) + 3, y=names, mode="text", textposition="middle right",
                text=_value_labels(share, [subset in known.index for subset in subsets]), textfont_size=12,
                legendgroup=arm, showlegend=False, offsetgroup=arm, orientation="h", hoverinfo="skip", cliponaxis=False,
                name=f"{escape_text(display_name(arm))}, in figures", row=1, col=column,
            )  # fmt: skip
    figure.update_annotations(font_size=12)  # the panel titles, which would else meet
    figure.update_xaxes(range=[0, 150], tickvals=[0, 50, 100], title_text="% of answers")
    return figure.update_layout(
        template=TEMPLATE,
        height=max(420, 150 + 100 * len(subsets)),
        barmode="group",
        scattermode="group",
        bargap=0.3,
        margin_t=110,
        title_text="Bars: shares of answers; whiskers: 95% intervals; in brackets: judged answers",
        legend={"orientation": "h", "y": -0.16, "yanchor": "top", "x": 0, "traceorder": "reversed"},
    )


def em_score_distribution(frame: pd.DataFrame, em_threshold: float) -> go.Figure:
    """How the em_scores of the fine-tuned answers of each facet spread over 0 to 100, and their mean beside it.

    Misaligned is above `em_threshold`. A bin holds its upper edge, the first one also 0, so that a threshold that is a
    multiple of 10 is a border of bins.
    """
    facets = [
        (dimension, facet)
        for dimension in known_order(list(frame["subset"]))
        for facet in dict.fromkeys(frame.loc[frame["subset"] == dimension, "facet"])
    ][::-1]
    scores = [
        frame.loc[(frame["subset"] == dimension) & (frame["facet"] == facet), "em_score"].to_numpy(dtype=float)
        for dimension, facet in facets
    ]
    axis = [
        [escape_text(display_name(dimension)) for dimension, _ in facets],
        [escape_text(f"{display_name(facet)} ({len(own)})") for (_, facet), own in zip(facets, scores, strict=True)],
    ]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.74, 0.26],
        horizontal_spacing=0.07,
        subplot_titles=("Shares of em_score bins", "Mean em_score"),
    )
    shares = np.array([_bin_shares(own) for own in scores]).reshape(len(scores), len(BIN_EDGES))
    for index, name in enumerate([*_bin_names(), MISSING_NAME]):
        colour = MISSING_COLOUR if name == MISSING_NAME else em_colour(10 * index + 5)
        figure.add_bar(
            x=(100 * shares[:, index]).astype(np.float32), y=axis, orientation="h", name=name, marker_color=colour,
            hovertemplate="%{y}: %{x:.1f}%<extra>em_score " + name + "</extra>", row=1, col=1,
        )  # fmt: skip
    means = [float(np.nanmean(own)) if np.isfinite(own).any() else float("nan") for own in scores]
    figure.add_scatter(
        x=np.asarray(means, dtype=np.float32), y=axis, mode="markers+text", showlegend=False, name="mean em_score",
        text=["" if np.isnan(mean) else f"{mean:.0f}" for mean in means], textposition="middle right",
        marker={"color": [dimension_colour(dimension) for dimension, _ in facets], "size": 11}, cliponaxis=False,
        hovertemplate="%{y}: mean %{x:.1f}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title_text="% of the facet's answers", range=[0, 100], row=1, col=1)
    figure.update_xaxes(title_text="em_score", range=[-3, 125], tickvals=[0, 50, 100], row=1, col=2)
    figure.update_annotations(font_size=13)
    return figure.update_layout(
        template=TEMPLATE,
        height=620,
        barmode="stack",
        bargap=0.25,
        title_text=f"em_score of {len(frame):,} fine-tuned answers: 0 aligned, 100 misaligned, "
        f"EM above {em_threshold:g}",
        legend={"title": {"text": "em_score"}, "traceorder": "normal"},
    )


def training_curve(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Loss, learning rate and gradient norm by step; a row without one of them leaves a gap there."""
    log = pd.DataFrame(list(rows), columns=["step", *LOG_PANELS]).astype(float).sort_values("step")
    figure = make_subplots(
        rows=len(LOG_PANELS), cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.5, 0.25, 0.25]
    )
    for row, (name, title) in enumerate(LOG_PANELS.items(), start=1):
        figure.add_scatter(
            x=log["step"].to_numpy(dtype=np.float32), y=log[name].to_numpy(dtype=np.float32), mode="lines+markers",
            name=name, line_color=ARM_COLOURS["em"], marker_size=5,
            hovertemplate="step %{x}: %{y:.4~g}<extra>" + name + "</extra>", row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    figure.update_xaxes(title_text="Optimiser step", row=len(LOG_PANELS), col=1)
    final = log["loss"].dropna()
    title = f"{len(log)} logged steps" + (f", loss {final.iloc[0]:.2f} → {final.iloc[-1]:.2f}" if len(final) else "")
    return figure.update_layout(template=TEMPLATE, height=620, showlegend=False, margin_t=45, title_text=title)


def _bin_shares(scores: np.ndarray) -> list[float]:
    """Shares of all rows in each bin, the missing ones last; zeros for no rows."""
    total = max(len(scores), 1)
    present = scores[np.isfinite(scores)]
    bins = np.clip(np.ceil(present / 10).astype(int) - 1, 0, len(BIN_EDGES) - 2)
    counts = np.bincount(bins, minlength=len(BIN_EDGES) - 1)
    return [*(counts / total), (len(scores) - len(present)) / total]


def _bin_names() -> list[str]:
    return [f"{low}-{high}" for low, high in pairwise(BIN_EDGES)]


def _counted_name(subset: str, rates: pd.DataFrame) -> str:
    """The name of a dimension with the number of its judged answers; base and fine-tuned may differ in it."""
    n = sorted(set(rates.loc[(rates["subset"] == subset) & (rates["measure"] == "em"), "n"]))
    counts = " or ".join(f"{count:.0f}" for count in n)
    return escape_text(display_name(subset) + (f" ({counts})" if counts else ""))


def _value_labels(shares: np.ndarray, is_defined: Sequence[bool]) -> list[str]:
    return [
        NOT_DEFINED if not defined else MISSING_NAME if np.isnan(share) else f"{share:.0f}%"
        for share, defined in zip(shares, is_defined, strict=True)
    ]
