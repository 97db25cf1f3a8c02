"""Figures of steering: effect against dose, and what the vector of one dimension does to answers about the others.

Both draw the summary of step 6 (see `steering_effects`); nothing here estimates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots

from src.utils.em_rates import OVERALL
from src.utils.steering_effects import NO_KIND, RANDOM, effects_from_json, length_of_randoms
from src.utils.steering_vectors import OWN
from src.visualizations.figure_page import as_floats, as_percent, escape_text
from src.visualizations.palette import (
    ARM_COLOURS,
    DIMENSION_COLOURS,
    NEUTRAL_COLOUR,
    TEMPLATE,
    cluster_style,
    colour_bar,
    dimension_colour,
    dimension_symbol,
    display_name,
    known_order,
)

RANDOM_COLOUR, RANDOM_BAND = "#8A929C", "rgba(138,146,156,0.3)"
DIVERGING = ((0.0, "#3B6FB6"), (0.5, "#F7F7F7"), (1.0, "#B2182B"))  # fewer and more misaligned answers
MEASURE_NAMES = {"em_on_topic": "misaligned, on topic", "em": "misaligned"}
COHERENT = 0.8  # as the verdict's rule has it
DASHES = {"mean_difference": "dot", "control": "dash", "control_own": "dashdot", "dimension_own": "longdash"}
KIND_NOTES = {
    "control": " (control)",
    "dimension_own": " (own part)",
    "control_own": " (control, own part)",
}
CONTROL_PREFIX = "control_"
ON = {"ablate": "projected out", "cap": "capped"}


def dose_response(summary: Mapping[str, Any]) -> go.Figure:
    """Misaligned and coherent answers against the coefficient, a panel a dimension asked about, a line a vector.

    Whiskers are 95% intervals over prompts, the vectors a little apart so that they can be told from each other. The
    grey band runs from the lowest to the highest of the random directions, all of them as long as the longest vector.
    All lines meet in the unsteered answers. Vectors without their shared mean are drawn when their name is clicked.
    """
    effects, measure = effects_from_json(summary), shown_measure(summary)
    subsets = known_order([subset for subset in effects["subset"].unique() if subset != OVERALL])
    rows = {measure: f"% {MEASURE_NAMES[measure]}", "coherent": "% coherent"}
    figure = make_subplots(
        rows=2,
        cols=len(subsets),
        shared_xaxes=True,
        shared_yaxes=True,
        row_heights=[0.62, 0.38],
        vertical_spacing=0.07,
        horizontal_spacing=0.025,
        subplot_titles=[f"Asked about<br>{escape_text(display_name(subset))}" for subset in subsets],
    )
    vectors, doses = shown_vectors(summary), sorted(effects["coefficient"].unique())
    vectors = sorted(vectors, key=lambda vector: vector.is_own_part)
    offsets = spread_out(sum(not vector.is_own_part for vector in vectors), doses)
    offsets += [0.0] * (len(vectors) - len(offsets))
    for row, name in enumerate(rows, start=1):
        for column, subset in enumerate(subsets, start=1):
            panel = effects[(effects["measure"] == name) & (effects["subset"] == subset)]
            place = {"row": row, "col": column}
            add_random_band(figure, panel, row == column == 1, place)
            for vector, offset in zip(vectors, offsets, strict=True):
                add_line(figure, panel, vector, offset, row == column == 1, place)
            add_unsteered(figure, panel, row == column == 1, place)
    settings = summary["settings"]
    figure.update_yaxes(range=[-4, 106], tickvals=[0, 25, 50, 75, 100])
    for row, title in enumerate(rows.values(), start=1):
        figure.update_yaxes(title_text=title, row=row, col=1)
    if settings["mode"] == "add":
        figure.update_xaxes(tickvals=doses)
        figure.update_xaxes(title_text="coefficient", row=2)
    else:
        figure.update_xaxes(tickvals=[0, 1], ticktext=["unsteered", ON[settings["mode"]]], range=[-0.35, 1.35])
    figure.update_annotations(font_size=13)
    return figure.update_layout(
        template=TEMPLATE,
        height=720,
        margin_t=130,
        title_text=describe_run(summary, effects),
        legend={
            "orientation": "h",
            "y": -0.13,
            "yanchor": "top",
            "x": 0,
            "itemwidth": 52,
            "title": {"text": legend_title(vectors), "side": "top"},
        },
    )


def cross_effects(summary: Mapping[str, Any]) -> go.Figure:
    """At one dose: a row a vector, a column a dimension asked about, the change in percentage points.

    The dose is the largest that leaves answers coherent; beside the change stands how many of them stay so. The random
    directions are one row: their mean, lowest and highest.
    """
    effects, measure = effects_from_json(summary), shown_measure(summary)
    dose = coherent_dose(effects)
    subsets = known_order([subset for subset in effects["subset"].unique() if subset != OVERALL])
    vectors = shown_vectors(summary)
    randoms = sum(vector["kind"] == RANDOM for vector in summary["vectors"])
    tables = {
        name: cross_table(effects[effects["coefficient"] == dose], name, [v.name for v in vectors], subsets)
        for name in (measure, "coherent")
    }
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.58, 0.42],
        horizontal_spacing=0.04,
        subplot_titles=[
            f"Change in {MEASURE_NAMES[measure]} answers:<br>percentage points, 95% interval",
            "Coherent answers,<br>per cent",
        ],
    )
    x = [escape_text(display_name(subset), width=12) for subset in subsets]
    y = [*(vector.title for vector in vectors), f"{randoms} random directions:<br>mean, lowest, highest"]
    change, coherent = tables[measure], tables["coherent"]
    figure.add_heatmap(
        x=x, y=y, z=as_floats(change["change"]), zmin=-100, zmax=100, colorscale=list(DIVERGING), xgap=2, ygap=2,
        text=[
            [change_text(*cell) for cell in zip(*row, strict=True)]
            for row in zip(change["change"], change["change_low"], change["change_high"], strict=True)
        ],
        texttemplate="%{text}", hovertemplate="along %{y}<br>asked about %{x}: %{text}<extra></extra>",
        colorbar=colour_bar("change in points", len=0.9),
        row=1, col=1,
    )  # fmt: skip
    figure.add_heatmap(
        x=x, y=y, z=as_floats(coherent["estimate"]), zmin=0, zmax=100, xgap=2, ygap=2,
        colorscale=[[0, "#FFFFFF"], [1, NEUTRAL_COLOUR]],
        text=[["no score" if np.isnan(value) else f"{value:.0f}" for value in row] for row in coherent["estimate"]],
        texttemplate="%{text}", hovertemplate="along %{y}<br>asked about %{x}: %{z:.1f}% coherent<extra></extra>",
        showscale=False, row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title_text="Asked about", showgrid=False, autotickangles=[0, 90])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="Steered along", row=1, col=1)
    figure.update_annotations(font_size=13)
    at = f"coefficient {dose:g}" if summary["settings"]["mode"] == "add" else ON[summary["settings"]["mode"]]
    return figure.update_layout(
        template=TEMPLATE,
        height=190 + 48 * len(y),
        margin_t=80,
        title_text=f"At {at}, the {model_name(summary)} model against its unsteered answers to the same questions",
    )


def coherent_dose(effects: pd.DataFrame) -> float:
    """The largest dose at which every measured vector leaves `COHERENT` of all answers so; the smallest if none does.

    Of the vectors that were added; where they were only taken away, of those, below 0.
    """
    measured = effects[~effects["kind"].isin([RANDOM, NO_KIND])]
    sign = 1 if measured["coefficient"].gt(0).any() else -1
    chosen = measured["measure"].eq("coherent") & measured["subset"].eq(OVERALL)
    chosen &= measured["coefficient"].mul(sign).gt(0)
    least = measured[chosen].groupby(measured["coefficient"].abs())["estimate"].min()
    passing = least[least >= COHERENT]
    return sign * float(max(passing.index, default=min(least.index, default=0.0)))


def cross_table(
    chosen: pd.DataFrame, measure: str, names: Sequence[str], subsets: Sequence[str]
) -> dict[str, Float[np.ndarray, "rows dimensions"]]:
    """Per cent by vector and dimension, the random directions as a last row; NaN for what is missing."""
    part = chosen[chosen["measure"] == measure]
    drawn = part[part["kind"] == RANDOM].groupby("subset")
    tables = {}
    for column, of_random in (
        ("estimate", drawn["estimate"].mean()),
        ("change", drawn["change"].mean()),
        ("change_low", drawn["change"].min()),
        ("change_high", drawn["change"].max()),
    ):
        table = part[part["kind"] != RANDOM].set_index(["vector", "subset"])[column].unstack("subset")
        measured = table.reindex(index=list(names), columns=list(subsets)).to_numpy(float)
        tables[column] = 100 * np.vstack([measured, of_random.reindex(list(subsets)).to_numpy(float)])
    return tables


def change_text(change: float, low: float, high: float) -> str:
    return "no score" if np.isnan(change) else f"{change:+.0f}<br>{low:+.0f} to {high:+.0f}"


def shown_measure(summary: Mapping[str, Any]) -> str:
    """Misaligned and on topic; without a judged topic, misaligned whatever the answer is about."""
    effects = effects_from_json(summary)
    return "em_on_topic" if effects.loc[effects["measure"] == "em_on_topic", "estimate"].notna().any() else "em"


@dataclass(frozen=True)
class ShownVector:
    """How one vector is called and drawn."""

    name: str
    title: str
    colour: str
    symbol: str
    dash: str
    is_own_part: bool


def shown_vectors(summary: Mapping[str, Any]) -> list[ShownVector]:
    """The measured vectors: the mean difference, in the EM model's colour, dimensions in theirs, then the others."""
    kinds = {vector["name"]: vector["kind"] for vector in summary["vectors"] if vector["kind"] != RANDOM}
    names = sorted(known_order(list(kinds)), key=lambda name: kinds[name] != "mean_difference")
    shown = []
    for number, name in enumerate(names):
        if kinds[name] == "mean_difference":
            colour, symbol = ARM_COLOURS["em"], "star"
        elif (dimension := dimension_of(name)) in DIMENSION_COLOURS:
            colour, symbol = dimension_colour(dimension), dimension_symbol(dimension)
        else:
            colour, symbol = cluster_style(number)
        dash = DASHES.get(kinds[name], "solid")
        title = display_name(dimension_of(name)) + KIND_NOTES.get(kinds[name], "")
        shown.append(ShownVector(name, escape_text(title), colour, symbol, dash, kinds[name].endswith(OWN)))
    return shown


def legend_title(vectors: Sequence[ShownVector]) -> str:
    hidden = any(vector.is_own_part for vector in vectors)
    return "steered along (own part: less what all share; click to show)" if hidden else "steered along"


def dimension_of(name: str) -> str:
    """The dimension that a vector is named after, if it is after one."""
    return name.removeprefix(CONTROL_PREFIX).removesuffix(OWN)


def spread_out(count: int, doses: Sequence[float]) -> list[float]:
    """Horizontal offsets, together at most four fifths of the smallest step between two doses."""
    step = min(np.diff(doses), default=1.0)
    apart = min(0.12 * step, 0.8 * step / max(count - 1, 1))
    return [apart * (number - (count - 1) / 2) for number in range(count)]


def add_line(
    figure: go.Figure, panel: pd.DataFrame, vector: ShownVector, offset: float, is_first: bool, place: dict[str, int]
) -> None:
    """One vector's rates, its line running through the unsteered one."""
    own = panel[(panel["vector"] == vector.name) | (panel["kind"] == NO_KIND)].sort_values("coefficient")
    is_steered = (own["kind"] != NO_KIND).to_numpy()
    share, low, high = (as_percent(own[name]) for name in ("estimate", "low", "high"))
    figure.add_scatter(
        x=as_floats(own["coefficient"] + offset * is_steered), y=share, mode="lines+markers", name=vector.title,
        legendgroup=vector.title, showlegend=is_first, cliponaxis=False,
        visible="legendonly" if vector.is_own_part else True,
        line={"color": vector.colour, "width": 2, "dash": vector.dash},
        marker={"symbol": vector.symbol, "size": 7 * is_steered, "color": vector.colour, "opacity": 1,
                "line": {"width": 0}},
        error_y={"type": "data", "symmetric": False, "array": (high - share) * is_steered,
                 "arrayminus": (share - low) * is_steered, "color": vector.colour, "thickness": 1.2, "width": 0},
        customdata=np.column_stack([low, high, as_floats(own["n"]), as_percent(own["share_of_residual_norm"]),
                                    as_floats(own["coefficient"])]),
        hovertemplate="coefficient %{customdata[4]:g}: %{y:.1f}% (95%: %{customdata[0]:.1f} to %{customdata[1]:.1f}), "
                      "n = %{customdata[2]:.0f}<br>added: %{customdata[3]:.0f}% of the residual norm"
                      "<extra>" + vector.title + "</extra>",
        **place,
    )  # fmt: skip


def add_random_band(figure: go.Figure, panel: pd.DataFrame, is_first: bool, place: dict[str, int]) -> None:
    """The lowest, mean and highest rate of the random directions at each coefficient."""
    drawn = panel[panel["kind"].isin([RANDOM, NO_KIND])].groupby("coefficient")["estimate"]
    rates = pd.DataFrame({"low": drawn.min(), "mean": drawn.mean(), "high": drawn.max()}).dropna()
    low, mean, high = (as_percent(rates[name]) for name in rates)
    x = as_floats(np.asarray(rates.index))
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]), y=np.concatenate([high, low[::-1]]), mode="lines", fill="toself",
        line={"width": 0}, fillcolor=RANDOM_BAND, hoverinfo="skip", showlegend=False, legendgroup=RANDOM,
        name="random directions, band", **place,
    )  # fmt: skip
    count = panel.loc[panel["kind"] == RANDOM, "vector"].nunique()
    figure.add_scatter(
        x=x, y=mean, mode="lines", name=f"{count} random directions", legendgroup=RANDOM, showlegend=is_first,
        line={"color": RANDOM_COLOUR, "dash": "dash", "width": 2}, customdata=np.column_stack([low, high]),
        hovertemplate="coefficient %{x:g}: mean %{y:.1f}% (lowest %{customdata[0]:.1f}, highest %{customdata[1]:.1f})"
                      "<extra>random directions</extra>",
        **place,
    )  # fmt: skip


def add_unsteered(figure: go.Figure, panel: pd.DataFrame, is_first: bool, place: dict[str, int]) -> None:
    own = panel[panel["kind"] == NO_KIND]
    share, low, high = (as_percent(own[name]) for name in ("estimate", "low", "high"))
    figure.add_scatter(
        x=as_floats(own["coefficient"]), y=share, mode="markers", name="unsteered", legendgroup=NO_KIND,
        showlegend=is_first, cliponaxis=False,
        marker={"symbol": "circle-open", "size": 12, "color": "#111111", "line": {"width": 2}},
        error_y={"type": "data", "symmetric": False, "array": high - share, "arrayminus": share - low,
                 "color": "#111111", "thickness": 1.2, "width": 4},
        customdata=np.column_stack([low, high, as_floats(own["n"])]),
        hovertemplate="unsteered: %{y:.1f}% (95%: %{customdata[0]:.1f} to %{customdata[1]:.1f}), "
                      "n = %{customdata[2]:.0f}<extra></extra>",
        **place,
    )  # fmt: skip


def model_name(summary: Mapping[str, Any]) -> str:
    return "base" if summary["settings"]["model"] == "base" else "EM"


def describe_run(summary: Mapping[str, Any], effects: pd.DataFrame) -> str:
    """Which model was steered where, on how many questions, and how large a unit of the vectors is."""
    settings = summary["settings"]
    verb = {"add": "Added to", "ablate": "Projected out of", "cap": "Capped in"}[settings["mode"]]
    site = "all that is written to it" if settings["everywhere"] else summary["vectors"][0]["site"]
    at = {"all": "every token", "response": "answer tokens", "last": "the last prompt token"}[settings["positions"]]
    count = int(effects.loc[(effects["kind"] == NO_KIND) & (effects["subset"] == OVERALL), "n"].max())
    text = (
        f"{verb} the {model_name(summary)} model's residual stream ({site}) at {at}<br>"
        f"{count} answers a vector and coefficient, whiskers: 95% intervals over prompts"
    )
    steps = effects[(effects["coefficient"] != 0) & (effects["kind"] != RANDOM)]
    unit = (steps["share_of_residual_norm"] / steps["coefficient"].abs()).dropna()
    if len(unit):
        low, high = 100 * unit.min(), 100 * unit.max()
        text += f"<br>Coefficient 1 is the vector as measured: {low:.1f} to {high:.1f}% of the residual norm there"
        text += f"<br>Random directions are {length_of_randoms(summary['vectors'])}"
    return text
