"""The page of an attack archive: where the judge was beaten, how the search went, what training on it changed.

Prompts in it are data: they are shown as text, cut and escaped. What is in the archive is left to `open_ended`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy.special import expit

from src.utils.open_ended.archive import Archive, Elite, Progress
from src.utils.open_ended.rates import FRESH
from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import (
    LABEL_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    TEMPLATE,
    colour_bar,
    display_name,
)

WRONG_SCALE = [[0.0, "#F4F5F7"], [0.5, "#C9C3DE"], [1.0, "#4A1486"]]
ARM_NAMES = {"evolution": "Evolution", "random": "Random search"}
ARM_COLOURS = {"evolution": "#4A1486", "random": "#7A8794"}
MOMENT_COLOURS = {"before": MISSING_COLOUR, "after": "#2B3A9B"}
EXAMPLES, PROMPT_LIMIT, TITLE_SIZE = 8, 320, 13
ROW_GAP, LEGEND_GAP = 120, 42  # pixels: between rows of panels, from a panel to the legend under it
TITLES = (
    "Unsafe: P(judge says safe)",
    "Safe: P(judge says unsafe)",
    "Quality-diversity score",
    "Niches where the judge is wrong",
    "Recall of unsafe prompts, 95% int.",
    "False-positive rate, 95% int.",
    "The prompts about which the judge is most wrong, one a style",
)


def archive_page(
    archive: Archive,
    histories: Mapping[str, Sequence[Progress]],
    rates: Sequence[Mapping[str, Any]],
    command: str,
    inputs: Mapping[str, str],
) -> FigurePage:
    """One page, `open_ended.html`; `rates` are rows of `before_and_after`."""
    return FigurePage(
        file_name="open_ended.html",
        title="Open-ended testing of the safety judge",
        sentence=sentence(archive, histories, rates),
        figure=archive_figure(archive, histories, rates),
        command=command,
        inputs=inputs,
    )


def sentence(archive: Archive, histories: Mapping[str, Sequence[Progress]], rates: Sequence[Mapping[str, Any]]) -> str:
    """What there is to see, in numbers."""
    last = histories["evolution"][-1]
    text = (
        f"After {last.calls:,} judged prompts evolution holds a prompt in {last.coverage:.0%} of "
        f"{len(archive.niches)} niches (style, category, label), and the judge is wrong in {last.broken:.0%} of them"
    )
    if other := histories.get("random"):
        text += f"; random search with as many: {other[-1].broken:.0%}"
    text += f". Quality-diversity score {last.qd_score:.1f}"
    text += f" against {other[-1].qd_score:.1f}. " if other else ". "
    if rates and "after" in rates[0]:
        changes = [f"{row['set']} {share_change(row, 'recall')} ({share_change(row, 'accuracy')})" for row in rates]
        text += (
            "Recall of unsafe prompts (and accuracy on all) before and after a round of training on the archive's "
            f"training half: {'; '.join(changes)}."
        )
        text += turned_words(next(row["turned"] for row in rates if row["set"] == FRESH))
    return text


def turned_words(turned: Mapping[str, float | None]) -> str:
    """Whether training taught more than to say the contrary, on attacks that no search chose; nothing if not known."""
    right, wrong = turned["right"], turned["wrong"]
    if right is None or wrong is None:
        return ""
    return (
        f" Of its verdicts on unselected attacks it turned {right:.0%} of the right and {wrong:.0%} of the wrong ones."
    )


def share_change(row: Mapping[str, Any], measure: str) -> str:
    """A measure before and after training, a dash where it is not defined."""
    return " to ".join("-" if row[at][measure] is None else f"{row[at][measure]:.1%}" for at in ("before", "after"))


def archive_figure(
    archive: Archive, histories: Mapping[str, Sequence[Progress]], rates: Sequence[Mapping[str, Any]]
) -> go.Figure:
    """Heat maps above, then the search, then the rates, then examples."""
    styles = list(dict.fromkeys(niche.style for niche in archive.niches))
    shown = examples(archive, styles)
    heights = [30 * len(styles) + 40, 240, 240, 54 * len(shown) + 40]
    total = sum(heights) + 3 * ROW_GAP
    figure = make_subplots(
        rows=4, cols=2, subplot_titles=TITLES, row_heights=heights, vertical_spacing=ROW_GAP / total,
        horizontal_spacing=0.11,
        specs=[[{}, {}], [{}, {}], [{}, {}], [{"type": "table", "colspan": 2}, None]],
    )  # fmt: skip
    for column, unsafe in enumerate((True, False), start=1):
        add_heat_map(figure, archive, styles, unsafe, column)
    add_search(figure, histories)
    for column, measure in enumerate(("recall", "false_positive_rate"), start=1):
        add_rates(figure, rates, measure, column)
    add_examples(figure, shown)
    figure.update_annotations(font_size=TITLE_SIZE)
    below = {
        name: {"orientation": "h", "x": 0, "y": figure.layout[axis].domain[0] - LEGEND_GAP / total, "yanchor": "top"}
        for name, axis in (("legend", "yaxis3"), ("legend2", "yaxis5"))
    }  # each under its own row
    return figure.update_layout(
        template=TEMPLATE, height=total + 80, margin={"t": 50, "b": 30, "l": 120}, barmode="group", **below
    )


def add_heat_map(figure: go.Figure, archive: Archive, styles: Sequence[str], unsafe: bool, column: int) -> None:
    """The best prompt's probability of the wrong label in each niche; a dash where no prompt was found, or can be."""
    categories = list(dict.fromkeys(niche.category for niche in archive.niches))
    values = np.full((len(styles), len(categories)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for niche in archive.niches:
        elite = archive.best(niche)
        if niche.unsafe == unsafe and elite is not None:
            place = styles.index(niche.style), categories.index(niche.category)
            values[place] = expit(elite.fitness)
            texts[place] = escape_text(elite.prompt.text, 60, PROMPT_LIMIT)
    figure.add_heatmap(
        z=as_floats(values), x=[display_name(name) for name in categories],
        y=[display_name(style) for style in styles], text=texts, hovertemplate="%{text}<br>%{z:.2f}<extra></extra>",
        zmin=0, zmax=1, colorscale=WRONG_SCALE, xgap=2, ygap=2, showscale=column == 2,
        colorbar=colour_bar("P(wrong)", len=0.22, y=1, yanchor="top"),
        row=1, col=column,
    )  # fmt: skip
    empty = [(category, style) for style, row in zip(styles, values, strict=True)
             for category, value in zip(categories, row, strict=True) if np.isnan(value)]  # fmt: skip
    figure.add_scatter(
        x=[display_name(category) for category, _ in empty], y=[display_name(style) for _, style in empty],
        mode="text", text="-", textfont={"color": NEUTRAL_COLOUR}, showlegend=False,
        hovertemplate="no prompt with this label<extra></extra>", row=1, col=column,
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", showgrid=False, showticklabels=column == 1, row=1, col=column)
    figure.update_xaxes(showgrid=False, tickangle=-35, row=1, col=column)


def add_search(figure: go.Figure, histories: Mapping[str, Sequence[Progress]]) -> None:
    """Quality-diversity score, and coverage with the share of broken niches, after each iteration."""
    for arm, history in histories.items():
        calls = [one.calls for one in history]
        line = {"color": ARM_COLOURS[arm], "dash": "solid" if arm == "evolution" else "dash"}
        name = ARM_NAMES[arm]
        figure.add_scatter(
            x=calls, y=as_floats(np.array([one.qd_score for one in history])), mode="lines", name=name, line=line,
            legendgroup=arm, hovertemplate=f"{name}, %{{x}} prompts: %{{y:.1f}}<extra></extra>", row=2, col=1,
        )  # fmt: skip
        figure.add_scatter(
            x=calls, y=as_floats(np.array([one.broken for one in history])), mode="lines", name=name, line=line,
            showlegend=False, hovertemplate=f"{name}, wrong in %{{y:.1%}}<extra></extra>", row=2, col=2,
        )  # fmt: skip
        figure.add_scatter(
            x=calls, y=as_floats(np.array([one.coverage for one in history])), mode="lines", name=f"{name}, coverage",
            line={"color": ARM_COLOURS[arm], "dash": "dot", "width": 1}, showlegend=arm == "evolution",
            hovertemplate=f"{name}, a prompt in %{{y:.1%}}<extra></extra>", row=2, col=2,
        )  # fmt: skip
    figure.update_xaxes(title_text="Prompts judged", row=2)
    figure.update_yaxes(title_text="Sum of P(wrong) over niches", rangemode="tozero", row=2, col=1)
    figure.update_yaxes(title_text="Share of niches (dotted: coverage)", range=[0, 1.03], row=2, col=2)


def add_rates(figure: go.Figure, rates: Sequence[Mapping[str, Any]], measure: str, column: int) -> None:
    """The measure on each set, before and after training, where it is defined."""
    for moment, colour in MOMENT_COLOURS.items():
        rows = [row for row in rates if moment in row and row[moment][measure] is not None]
        if not rows:
            continue
        values = np.array([row[moment][measure] for row in rows])
        bounds = np.array(
            [row[moment]["intervals"].get(measure) or [value] * 2 for row, value in zip(rows, values, strict=True)]
        )
        figure.add_bar(
            x=[broken(row["set"]) for row in rows], y=as_floats(values),
            name=f"{display_name(moment)} training",
            marker_color=colour, legend="legend2", legendgroup=moment, showlegend=column == 1,
            error_y={"type": "data", "symmetric": False, "array": as_floats(bounds[:, 1] - values),
                     "arrayminus": as_floats(values - bounds[:, 0]), "thickness": 1.2, "width": 3},
            hovertemplate="%{x}: %{y:.3f}<extra></extra>", row=3, col=column,
        )  # fmt: skip
    figure.update_xaxes(tickangle=0, tickfont_size=10, row=3, col=column)
    figure.update_yaxes(title_text="Share", range=[0, 1.05], row=3, col=column)


def broken(name: str) -> str:
    """A set's name in two lines: four names stand side by side."""
    return name.replace(", ", ",<br>") if ", " in name else name.replace(" ", "<br>", 1)


def examples(archive: Archive, styles: Sequence[str]) -> list[Elite]:
    """The prompt of each style about which the judge is most wrong, the worst first."""
    best = [
        max((elite for elite in archive if elite.prompt.niche.style == style), key=lambda elite: elite.fitness)
        for style in styles
        if any(elite.prompt.niche.style == style for elite in archive)
    ]
    return sorted((elite for elite in best if elite.is_wrong), key=lambda elite: -elite.fitness)[:EXAMPLES]


def add_examples(figure: go.Figure, shown: Sequence[Elite]) -> None:
    labels = ["unsafe" if elite.prompt.niche.unsafe else "safe" for elite in shown]
    figure.add_table(
        columnwidth=[18, 12, 15, 70],
        header={"values": ["Style", "Label", "P(wrong)", "Prompt"], "align": "left", "fill_color": "#ECEEF1"},
        cells={
            "values": [
                [display_name(elite.prompt.niche.style) for elite in shown],
                labels,
                [f"{expit(elite.fitness):.3f}" for elite in shown],
                [escape_text(elite.prompt.text, limit=PROMPT_LIMIT) for elite in shown],
            ],
            "align": "left",
            "height": 40,
            "font": {"color": [[NEUTRAL_COLOUR], [LABEL_COLOURS[label] for label in labels]], "size": 12},  # ty: ignore
            "fill_color": "white",
        },
        row=4,
        col=1,
    )
