"""The records of a watched training as tables and as a figure of what watching cost.

Apart from the folder itself, since pandas is not needed to look at pictures.
"""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from src.dashboard.charts import Spec
from src.dashboard.watched_runs import best_number
from src.utils.watching.epoch_metrics import EpochMetrics
from src.visualizations.figure_page import as_floats, escape_text, figure_json
from src.visualizations.palette import CLUSTER_COLOURS, TEMPLATE


def metrics_table(records: Sequence[EpochMetrics], unit: str) -> pd.DataFrame:
    """A row a moment: number, step, losses, every metric that was measured, seconds; `best` marks one row.

    A persona's fine-tune is not evaluated on held-out rows: it has neither a validation loss nor a best moment.
    """
    best = best_number(records)
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    rows = [
        {
            unit: record.number,
            "best": best[1] if best is not None and best[0] == record.number else "",
            "step": record.step,
            "training loss": record.training_loss,
            "validation loss": record.trainer_metrics.get("eval_loss"),
            **{name: record.metrics.get(name) for name in names},
            "training seconds": record.training_seconds,
            "watching seconds": record.watching_seconds,
            "pictures": "drawn" if record.is_visualised else "",
            "failure": record.failure or "",
        }
        for record in records
    ]
    table = pd.DataFrame(rows)
    is_evaluated = best is not None or table["validation loss"].notna().any()
    return table if is_evaluated else table.drop(columns=["best", "validation loss"])


def picture_times(records: Sequence[EpochMetrics], unit: str) -> pd.DataFrame:
    """A row a picture and moment: what it took, its budget, what was cut or failed, whether gradients converged."""
    rows = [
        {
            unit: record.number,
            "picture": picture.name.replace("_", " "),
            "seconds": picture.seconds,
            "budget": picture.budget_seconds,
            "memory raised (MiB)": picture.memory_raised_bytes / 2**20,
            "converged": f"{sum(one.has_passed for one in picture.convergence)} of {len(picture.convergence)}"
            if picture.convergence
            else "",
            "cut": picture.sub_sampled or "",
            "failure": picture.failure or "",
        }
        for record in records
        for picture in record.pictures
    ]
    columns = [unit, "picture", "seconds", "budget", "memory raised (MiB)", "converged", "cut", "failure"]
    return pd.DataFrame(rows, columns=columns)


def times_figure(times: pd.DataFrame, unit: str) -> Spec:
    """Stacked bars: seconds of each picture by moment, of what `picture_times` gives."""
    figure = go.Figure()
    for place, (name, part) in enumerate(times.groupby("picture", sort=False)):
        figure.add_bar(
            x=part[unit].tolist(), y=as_floats(part["seconds"]), name=escape_text(str(name)),
            marker_color=CLUSTER_COLOURS[place % len(CLUSTER_COLOURS)],
            hovertemplate=f"{unit} %{{x}}: %{{y:.2f}} s<extra>{escape_text(str(name))}</extra>",
        )  # fmt: skip
    return figure_json(
        figure.update_layout(
            template=TEMPLATE,
            barmode="stack",
            height=320,
            margin_t=30,
            showlegend=True,
            xaxis_title_text=unit,
            yaxis_title_text="seconds",
        )
    )
