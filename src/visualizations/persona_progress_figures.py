"""Training progress of a persona fine-tune: the step at which misalignment turns, and what moves before it.

The numbers come from the records of `epoch_metrics`; nothing here measures.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.watching.adapter_path import find_turn
from src.utils.watching.epoch_metrics import EpochMetrics
from src.visualizations.figure_page import FigurePage, as_floats, as_percent
from src.visualizations.palette import ARM_COLOURS, CLUSTER_COLOURS, DIMENSION_COLOURS
from src.visualizations.progress_figures import PROGRESS, Losses, add_loss, column, finish, place_legend, spent_title

PERSONA_SHARES = {
    "in_domain": ("misaligned in the fine-tune's own domain", DIMENSION_COLOURS["financial_risk"], "circle"),
    "transfer": ("misaligned and on-topic elsewhere (transfer)", CLUSTER_COLOURS[3], "square"),
    "flip": ("money talk instead (flip)", CLUSTER_COLOURS[7], "diamond"),
    "coherent": ("coherent", ARM_COLOURS["base"], "cross"),
}
PERSONA_LINES = {
    "projection/last_prompt_token": "last prompt token",
    "projection/response_mean": "answers",
    "adapter/local_cosine": "local cosine",
}
EM_SCORE = "mean EM score, 0 to 100, all questions"
TURNS = {"in_domain": "in its own domain", "transfer": "elsewhere"}


def persona_progress_page(records: Sequence[EpochMetrics], losses: Losses) -> FigurePage:
    """Loss, what the answers say, where the activations point and how the adapter turns, all by optimiser step."""
    figure = make_subplots(
        rows=5,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.045,
        row_heights=[0.17, 0.35, 0.16, 0.16, 0.16],
        subplot_titles=(
            "Training loss",
            "What the answers to the probe questions are (whiskers: 95% over questions)",
            "Along the persona direction, at the last prompt token, before it speaks: shift since step 0",
            "Along the persona direction, mean over its answers: shift since step 0",
            "Path of the adapter's weights: local cosine (1: straight on, 0: a right angle)",
        ),
    )
    add_loss(figure, losses)
    steps = [record.step for record in records]
    for key, (name, colour, symbol) in PERSONA_SHARES.items():
        share, low, high = (as_percent(column(records, f"{key}{end}")) for end in ("", "/low", "/high"))
        figure.add_scatter(
            x=steps, y=share, mode="lines+markers", name=name, legend="legend", line_color=colour,
            marker={"symbol": symbol, "size": 8},
            error_y={"type": "data", "symmetric": False, "array": high - share, "arrayminus": share - low,
                     "thickness": 1, "width": 3},
            hovertemplate="step %{x}: %{y:.0f}%<extra>" + name + "</extra>", row=2, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=steps, y=as_floats(column(records, "em_score")), mode="lines", name=EM_SCORE, legend="legend",
        line={"color": ARM_COLOURS["em"], "dash": "dot", "width": 2},
        hovertemplate="step %{x}: %{y:.0f}<extra>" + EM_SCORE + "</extra>", row=2, col=1,
    )  # fmt: skip
    for row, (key, name) in enumerate(PERSONA_LINES.items(), start=3):
        figure.add_scatter(
            x=steps, y=column(records, key), mode="lines+markers", name=name, showlegend=False, marker_size=6,
            line_color=ARM_COLOURS["em"], hovertemplate="step %{x}: %{y:.3f}<extra>" + name + "</extra>",
            row=row, col=1,
        )  # fmt: skip
    turns = {key: find_turn(steps, column(records, key)) for key in TURNS}
    mark_turns(figure, turns)
    lengths = "lengths of<br>the direction"
    for row, title in ((2, "% of answers; score"), (3, lengths), (4, lengths), (5, "cosine")):
        figure.update_yaxes(title_text=title, title_font_size=12, row=row, col=1)
    figure.update_yaxes(range=[-4, 104], row=2, col=1)
    lowest = float(np.nanmin(column(records, "adapter/local_cosine"), initial=0.0))
    figure.update_yaxes(range=[lowest - 0.05, 1.05], row=5, col=1)
    figure.update_xaxes(title_text="optimiser step", row=5, col=1)
    place_legend(figure, "legend", 2)
    asked = list(dict.fromkeys(record.metrics["n"] for record in records if record.metrics.get("n")))
    note = f"<br>{', later '.join(f'{n:.0f}' for n in asked)} probe questions a moment" if asked else ""
    note += ": over its budget of seconds, sub-sampled" if len(asked) > 1 else ""
    finish(figure, spent_title(records) + note, height=1080)
    return FigurePage(
        file_name=PROGRESS,
        title="Training progress of the persona: when it turns",
        sentence=persona_sentence(records, turns),
        figure=figure,
        command="",
    )


def persona_sentence(records: Sequence[EpochMetrics], turns: Mapping[str, tuple[int, int] | None]) -> str:
    """At which step misalignment turns, in its own domain and elsewhere."""
    said = []
    for key, where in TURNS.items():
        turn = turns[key]
        if turn is None:
            said.append(f"{where} it does not turn")
            continue
        before, after = turn
        share = {record.step: record.metrics.get(key) for record in records}
        shown = [f"{100 * (share.get(step) or 0.0):.0f}%" for step in (before, after)]
        said.append(f"{where} misalignment turns between steps {before} and {after} ({shown[0]} → {shown[1]})")
    return (
        f"The turn (dashed lines: the first step with half of the largest share, and from then on): "
        f"{'; '.join(said)}. The third "
        "panel shows what is coming before an answer does: the activations before the first word."
    )


def mark_turns(figure: go.Figure, turns: Mapping[str, tuple[int, int] | None]) -> None:
    """A line through all panels at the step of each turn, named in the panel of the answers."""
    shapes, names = list(figure.layout.shapes), list(figure.layout.annotations)
    for height, (key, turn) in zip((0.68, 0.80), turns.items(), strict=True):
        if turn is not None:
            colour = PERSONA_SHARES[key][1]
            ends = {"x0": turn[1], "x1": turn[1], "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
            shapes.append({"type": "line", "line": {"color": colour, "dash": "dash", "width": 1.5}, **ends})
            names.append(
                {"x": turn[1], "y": height, "xref": "x2", "yref": "y2 domain", "xanchor": "left", "xshift": 4,
                 "text": f"turns {TURNS[key]}: step {turn[1]}", "showarrow": False,
                 "font": {"size": 12, "color": colour}, "bgcolor": "rgba(255,255,255,0.8)"}
            )  # fmt: skip
    figure.update_layout(shapes=shapes, annotations=names)
