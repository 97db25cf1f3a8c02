"""Rank and cluster statistics of every layer side by side, from `results/decomposition_geometry.json`."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.visualizations.evidence_words import describe_kind
from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.geometry_figures import (
    ALGORITHM_NAMES,
    ALPHA,
    OWN_K,
    STATISTIC_NAMES,
    Record,
)
from src.visualizations.palette import TEMPLATE, colour_bar
from src.visualizations.steering_figures import DIVERGING

DEEPEST = 20.0  # beyond so many standard deviations more of them say nothing more
RANK_COLUMNS = ("components<br>above null", "participation<br>ratio", "overlap of<br>halves")
PALE = ((0.0, "#F4F6F8"), (1.0, "#A9BACB"))


def layer_statistics(record: Record) -> go.Figure:
    """Left, rank by layer; right, how far each clustering statistic is beyond its null, in standard deviations."""
    layers = record["layers"]
    names, tests = layers["names"], layers["tests"]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        column_widths=[0.27, 0.73],
        horizontal_spacing=0.02,
        subplot_titles=(
            "Rank: light to dark,<br>least to most of a column",
            "Clusters: standard deviations above the<br>null's mean, by k; * beyond it (max-T, 5%)",
        ),
    )
    shown = [escape_text(name, width=14) for name in names]
    values = np.array([rank_values(layers["rank"][name]) for name in names], dtype=float)
    spread = np.nanmax(values, axis=0) - np.nanmin(values, axis=0)
    scaled = (values - np.nanmin(values, axis=0)) / np.where(spread > 0, spread, 1)
    text = [[rank_text(value, at) for at, value in enumerate(row)] for row in values]
    figure.add_heatmap(
        x=list(RANK_COLUMNS), y=shown, z=as_floats(scaled), colorscale=list(PALE), showscale=False, xgap=2, ygap=2,
        customdata=as_floats(values), text=text, texttemplate="%{text}", hovertemplate="%{y}: %{text}<extra></extra>",
        row=1, col=1,
    )  # fmt: skip
    keys = list(dict.fromkeys((row["algorithm"], row["statistic"], row["k"]) for row in tests))
    keys.sort(key=lambda key: (list(ALGORITHM_NAMES).index(key[0]), list(STATISTIC_NAMES).index(key[1])))
    found = {(row["layer"], row["algorithm"], row["statistic"], row["k"]): row for row in tests}
    rows = [[found[name, *key] for key in keys] for name in names]
    beyond = np.array([[standard_score(row) for row in line] for line in rows], dtype=float)
    figure.add_heatmap(
        x=[
            [f"{ALGORITHM_NAMES[name]}: {STATISTIC_NAMES[statistic].lower()}" for name, statistic, _ in keys],
            [str(k) if k else OWN_K for _, _, k in keys],
        ],
        y=shown, z=as_floats(beyond), zmin=-DEEPEST, zmax=DEEPEST, colorscale=list(DIVERGING), xgap=2, ygap=2,
        text=[[score_text(row) for row in line] for line in rows], texttemplate="%{text}",
        colorbar=colour_bar("standard deviations"),
        hovertemplate="%{y}, %{x}: %{text}<extra></extra>",
        row=1, col=2,
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_annotations(font_size=13)
    figure.update_xaxes(showgrid=False, autotickangles=[0, 90], tickfont_size=11)
    return figure.update_layout(
        template=TEMPLATE,
        height=230 + 70 * len(names),
        margin={"t": 80, "b": 80},
        title_text=f"{describe_kind(record)} · colours of the right panel end at {DEEPEST:g} standard deviations",
    )


def rank_values(rank: Record) -> tuple[float, float, float]:
    """Retained components, participation ratio and overlap of halves, NaN where there is a reason instead."""
    parts = (("parallel_analysis", "retained"), ("participation", "estimate"), ("half_agreement", "overlap"))
    values = (rank[part].get(name) for part, name in parts)
    retained, ratio, overlap = (float("nan") if value is None else float(value) for value in values)
    return retained, ratio, overlap


def rank_text(value: float, column: int) -> str:
    return "none" if np.isnan(value) else (f"{value:.0f}" if column == 0 else f"{value:.2f}")


def standard_score(row: Record) -> float:
    """How far the data are beyond the null's mean, in its standard deviations; NaN for a null without spread."""
    return (row["observed"] - row["null_mean"]) / row["null_sd"] if row["null_sd"] else float("nan")


def score_text(row: Record) -> str:
    score = standard_score(row)
    return "" if np.isnan(score) else f"{score:+.{0 if abs(score) >= 10 else 1}f}{'*' if row['p_max'] < ALPHA else ''}"
