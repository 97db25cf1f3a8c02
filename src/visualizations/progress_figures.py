"""Training progress of the judge: every watched epoch's numbers and every step's loss; what such pages share.

The numbers come from the records of `epoch_metrics`; nothing here measures.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots

from src.utils.watching.epoch_metrics import EpochMetrics
from src.visualizations.figure_page import FigurePage, as_floats
from src.visualizations.palette import (
    ARM_COLOURS,
    CLUSTER_COLOURS,
    LABEL_COLOURS,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEMPLATE,
)

MOST_LOSSES = 2000  # points of a curve
Losses = Sequence[tuple[int, float]]
PROGRESS = "training_progress.html"

SCORES = {
    "auroc": ("AUROC", "circle"),
    "auprc": ("AUPRC", "square"),
    "f1": ("F1", "diamond"),
    "accuracy": ("accuracy", "cross"),
    "recall_at_fpr_5": ("recall at 5% false positives", "triangle-up"),
}


def judge_progress_page(records: Sequence[EpochMetrics], losses: Losses) -> FigurePage:
    """Loss by step; scores, margins and seconds by epoch, epoch 0 being the model before training."""
    figure = make_subplots(
        rows=4,
        cols=1,
        vertical_spacing=0.065,
        row_heights=[0.26, 0.32, 0.24, 0.18],
        subplot_titles=(
            "Loss by optimiser step (thin: each, thick: running mean; validation: at the end of each epoch)",
            "Scores on the validation probes (unsafe is the positive class; filled: epochs with pictures)",
            "Margins by label: median, 10% to 90%",
            "Seconds: training and watching",
        ),
    )
    add_loss(figure, losses)
    evaluated = [(one.step, one.trainer_metrics["eval_loss"]) for one in records if "eval_loss" in one.trainer_metrics]
    figure.add_scatter(
        x=[step for step, _ in evaluated], y=as_floats(np.array([loss for _, loss in evaluated])), mode="lines+markers",
        name="validation loss", line={"color": REFERENCE_COLOUR, "dash": "dot"}, marker_size=7, legend="legend4",
        showlegend=bool(evaluated), hovertemplate="step %{x}: %{y:.4f}<extra>validation loss</extra>", row=1, col=1,
    )  # fmt: skip
    numbers = [record.number for record in records]
    for (key, (name, symbol)), colour in zip(SCORES.items(), CLUSTER_COLOURS, strict=False):
        figure.add_scatter(
            x=numbers, y=column(records, key), mode="lines+markers", name=name, legend="legend", line_color=colour,
            marker={"symbol": [symbol if one.is_visualised else f"{symbol}-open" for one in records], "size": 8},
            hovertemplate="epoch %{x}: %{y:.3f}<extra>" + name + "</extra>", row=2, col=1,
        )  # fmt: skip
    for label, colour in LABEL_COLOURS.items():
        low, middle, high = (column(records, f"margin/{label}/{at}") for at in ("0.1", "0.5", "0.9"))
        figure.add_scatter(
            x=numbers, y=middle, mode="lines+markers", name=f"{label} prompts", legend="legend2", line_color=colour,
            error_y={"type": "data", "symmetric": False, "array": high - middle, "arrayminus": middle - low,
                     "thickness": 1.2, "width": 4},
            hovertemplate="epoch %{x}: median %{y:+.2f} logits<extra>" + label + "</extra>", row=3, col=1,
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": NEUTRAL_COLOUR, "dash": "dot", "width": 1}, row=3, col=1)
    add_seconds(figure, records, row=4)
    last = max(numbers, default=1)
    for row in (2, 3, 4):
        figure.update_xaxes(range=[-0.5, last + 0.5], dtick=max(1, -(-last // 20)), row=row, col=1)
    figure.update_xaxes(title_text="epoch (0: before training)", row=4, col=1)
    figure.update_yaxes(range=[-0.03, 1.03], row=2, col=1)
    for row, title in ((2, "score"), (3, "margin (logits)"), (4, "seconds")):
        figure.update_yaxes(title_text=title, row=row, col=1)
    for name, row in (("legend4", 1), ("legend", 2), ("legend2", 3), ("legend3", 4)):
        place_legend(figure, name, row)
    failed = [record.number for record in records if record.failure]
    title = spent_title(records) + (f"<br>Statistics failed at epochs {failed}" if failed else "")
    finish(figure, title, height=980)
    return FigurePage(
        file_name=PROGRESS,
        title="Training progress of the judge",
        sentence=judge_sentence(records, losses),
        figure=figure,
        command="",
    )


def judge_sentence(records: Sequence[EpochMetrics], losses: Losses) -> str:
    """What the page shows, in figures."""
    known = [record for record in records if record.metrics]
    parts = []
    if len(losses) > 1:
        parts.append(f"The loss went from {losses[0][1]:.3f} to {losses[-1][1]:.3f} in {losses[-1][0]} steps")
    if len(known) > 1:
        first, last = known[0], known[-1]
        scores = ", ".join(
            f"{SCORES[key][0]} {first.metrics[key]:.2f} → {last.metrics[key]:.2f}"
            for key in ("auroc", "accuracy")
            if isinstance(first.metrics.get(key), float) and isinstance(last.metrics.get(key), float)
        )
        parts.append(
            f"on {first.metrics.get('n') or 0:.0f} validation prompts, epochs {first.number} to {last.number}: {scores}"
        )
    return (
        "; ".join(parts) + (". " if parts else "") + "A judge that learns pulls the margins of safe and unsafe "
        "prompts apart (third panel) and not only its loss down."
    )


def add_loss(figure: go.Figure, losses: Losses) -> None:
    """The loss of each step, thin where there are many, with its running mean over a fifteenth of them."""
    steps, values = as_floats(np.array([at for at, _ in losses])), as_floats(np.array([loss for _, loss in losses]))
    width = max(1, len(values) // 15)
    is_long = width > 1
    drawn = evenly(len(values), MOST_LOSSES)
    figure.add_scatter(
        x=steps[drawn], y=values[drawn], mode="lines" if is_long else "lines+markers", name="training loss",
        showlegend=False, marker_size=5,
        line={"color": ARM_COLOURS["base"] if is_long else ARM_COLOURS["em"], "width": 1 if is_long else 2},
        hovertemplate="step %{x}: %{y:.4f}<extra>loss</extra>", row=1, col=1,
    )  # fmt: skip
    if is_long:
        mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
        drawn = evenly(len(mean), MOST_LOSSES)
        figure.add_scatter(
            x=steps[width - 1 :][drawn], y=as_floats(mean[drawn]), mode="lines", name="running mean", showlegend=False,
            line={"color": ARM_COLOURS["em"], "width": 2}, row=1, col=1,
            hovertemplate=f"step %{{x}}: mean of {width} steps %{{y:.4f}}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(title_text="loss", rangemode="tozero", row=1, col=1)


def evenly(count: int, most: int) -> Int[np.ndarray, " drawn"]:
    """Places of at most so many of `count` things, evenly spaced, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def add_seconds(figure: go.Figure, records: Sequence[EpochMetrics], row: int) -> None:
    numbers = [record.number for record in records]
    for name, seconds, colour in (
        ("training", [record.training_seconds for record in records], ARM_COLOURS["base"]),
        ("watching", [record.watching_seconds for record in records], REFERENCE_COLOUR),
    ):
        figure.add_bar(
            x=numbers, y=as_floats(np.array(seconds)), name=name, marker_color=colour, legend="legend3",
            hovertemplate="epoch %{x}: %{y:.2f} s<extra>" + name + "</extra>", row=row, col=1,
        )  # fmt: skip


def spent_title(records: Sequence[EpochMetrics]) -> str:
    watching = sum(record.watching_seconds for record in records)
    training = sum(record.training_seconds for record in records)
    drawn = sum(bool(record.is_visualised and record.pictures) for record in records)
    share = f", {100 * watching / training:.0f}% of training" if training else ""
    pictures = f", {drawn} with pictures of their own" if drawn else ""
    return f"{len(records)} moments watched{pictures}; watching took {watching:.1f} s{share}"


def column(records: Sequence[EpochMetrics], key: str) -> np.ndarray:
    """A metric by record; what is missing is NaN and leaves a gap."""
    values = [record.metrics.get(key) for record in records]
    return as_floats(np.array([np.nan if value is None else value for value in values], dtype=float))


def place_legend(figure: go.Figure, name: str, row: int) -> None:
    """A panel's legend at its right."""
    domain = figure.layout[f"yaxis{'' if row == 1 else row}"].domain
    figure.update_layout({name: {"x": 1.01, "xanchor": "left", "y": domain[1], "yanchor": "top", "font": {"size": 12}}})


def finish(figure: go.Figure, title: str, height: int) -> None:
    figure.update_layout(
        template=TEMPLATE, height=height, barmode="stack", bargap=0.35, title_text=title, margin={"t": 76, "r": 260},
        hovermode="closest",
    )  # fmt: skip
    for annotation, row in zip(figure.layout.annotations, range(1, 6), strict=False):
        annotation.update(
            x=0, xanchor="left", font_size=13, y=figure.layout[f"yaxis{'' if row == 1 else row}"].domain[1]
        )
