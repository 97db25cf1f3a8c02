"""The results page of a safety judge: one figure of six panels. The measures are computed elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import NEUTRAL_COLOUR, REFERENCE_COLOUR, TEMPLATE

JUDGE_COLOUR, PROBE_COLOUR, WORDS_COLOUR = "#2B3A9B", "#E69F00", "#7A8794"
MEASURES = {"accuracy": "Accuracy", "f1": "F1", "auroc": "AUROC", "auprc": "AUPRC"}
MOST_GROUPS = 14
TITLES = (
    "Judge and baselines, 95% intervals",
    "Precision and recall of the judge",
    "Reliability: area is the number of prompts",
    "Judge by source and category, 95% intervals",
    "Probes of the base model by layer",
    "Thresholds chosen on validation",
)
PLACES = [{"row": row, "col": col} for row in (1, 2, 3) for col in (1, 2)]
COMPARISON, PRECISION_RECALL, RELIABILITY, GROUPS, LAYERS, THRESHOLDS = PLACES


def evaluation_pages(
    evaluation: Mapping[str, Any], probes: Sequence[Mapping[str, Any]], command: str, inputs: Mapping[str, str]
) -> list[FigurePage]:
    """The results page; `evaluation` is the content of evaluation.json, `probes` are rows of baselines.json."""
    return [
        FigurePage(
            file_name="evaluation.html",
            title="The safety judge on its test split",
            sentence=sentence(evaluation),
            figure=evaluation_figure(evaluation, probes),
            command=command,
            inputs=inputs,
        )
    ]


def sentence(evaluation: Mapping[str, Any]) -> str:
    """What there is to see, in numbers."""
    test, scaled = evaluation["test"], evaluation["test_after_temperature_scaling"]
    text = f"The judge is right on {test['accuracy']:.1%} of {test['n']:,} test prompts"
    others = [f"{gained(row)} against {row['name']} ({row['test']['accuracy']:.1%})" for row in evaluation["baselines"]]
    text += f": {', '.join(others)}; paired, 95% intervals. " if others else ". "
    return text + (
        f"Unsafe is the positive class. Temperature {evaluation['temperature']:.2f}, fitted on validation, takes the "
        f"calibration error from {test['ece']:.3f} to {scaled['ece']:.3f}."
    )


def gained(baseline: Mapping[str, Any]) -> str:
    """What the judge is better by, in points of accuracy, with its paired interval."""
    gain = baseline["judge_gain_in_accuracy"]
    low, high = gain["interval"]
    return f"{100 * gain['estimate']:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"


def evaluation_figure(evaluation: Mapping[str, Any], probes: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Three rows of two panels: wide enough for a narrow window."""
    figure = make_subplots(
        rows=3, cols=2, subplot_titles=TITLES, horizontal_spacing=0.15, vertical_spacing=0.11,
    )  # fmt: skip
    add_comparison(figure, evaluation)
    add_precision_recall(figure, evaluation)
    add_reliability(figure, evaluation)
    add_groups(figure, evaluation)
    add_layers(figure, evaluation, probes)
    add_thresholds(figure, evaluation["thresholds"])
    figure.update_annotations({"font": {"size": 13}}, selector={"yanchor": "bottom"})
    return figure.update_layout(
        template=TEMPLATE, height=1120, margin={"t": 50, "b": 130, "r": 30},
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
    )  # fmt: skip


def add_comparison(figure: go.Figure, evaluation: Mapping[str, Any]) -> None:
    """Measures of the judge and of its baselines as points with intervals."""
    shown = [("Judge", JUDGE_COLOUR, "circle", evaluation["test"])]
    for row in evaluation["baselines"]:
        is_probe = row["layer"] is not None
        name = f"Best probe (layer {row['layer']})" if is_probe else "Bag of words"
        shown.append(
            (name, PROBE_COLOUR if is_probe else WORDS_COLOUR, "diamond" if is_probe else "square", row["test"])
        )
    for number, (name, colour, symbol, measured) in enumerate(shown):
        places = np.arange(len(MEASURES)) + 0.2 * (number - (len(shown) - 1) / 2)
        figure.add_scatter(
            x=as_floats(places), y=values_of(measured, MEASURES), error_y=error_bars(measured, MEASURES),
            mode="markers", name=name, marker={"color": colour, "symbol": symbol, "size": 9},
            hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>", **COMPARISON,
        )  # fmt: skip
    figure.add_hline(y=0.5, line={"color": REFERENCE_COLOUR, "dash": "dot", "width": 1}, **COMPARISON)
    figure.update_xaxes(tickvals=[*range(len(MEASURES))], ticktext=[*MEASURES.values()], **COMPARISON)
    figure.update_yaxes(title_text="Measure (0 to 1; dotted: 0.5)", range=[0, 1.03], **COMPARISON)


def values_of(measured: Mapping[str, Any], names: Mapping[str, str]) -> np.ndarray:
    return as_floats(np.array([np.nan if measured[name] is None else measured[name] for name in names]))


def error_bars(measured: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Distances from a value to the ends of its interval; none where there is none."""
    above, below = [], []
    for name in names:
        between = measured["intervals"].get(name)
        above.append(between[1] - measured[name] if between else 0.0)
        below.append(measured[name] - between[0] if between else 0.0)
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3,
        "array": as_floats(np.array(above)), "arrayminus": as_floats(np.array(below)),
    }  # fmt: skip


def add_precision_recall(figure: go.Figure, evaluation: Mapping[str, Any]) -> None:
    curve, test = evaluation["curves"]["precision_recall"], evaluation["test"]
    figure.add_scatter(
        x=as_floats(np.array(curve["recall"])), y=as_floats(np.array(curve["precision"])), mode="lines",
        line={"color": JUDGE_COLOUR, "shape": "hv"}, showlegend=False,
        hovertemplate="recall %{x:.3f}, precision %{y:.3f}<extra></extra>", **PRECISION_RECALL,
    )  # fmt: skip
    share = test["n_unsafe"] / test["n"]
    figure.add_hline(y=share, line={"color": REFERENCE_COLOUR, "dash": "dot", "width": 1}, **PRECISION_RECALL)
    figure.update_xaxes(title_text="Recall of unsafe prompts", range=[0, 1.02], **PRECISION_RECALL)
    figure.update_yaxes(title_text="Precision (dotted: chance)", range=[0, 1.03], **PRECISION_RECALL)


def add_reliability(figure: go.Figure, evaluation: Mapping[str, Any]) -> None:
    """Share of unsafe prompts against P(unsafe), before and after temperature scaling; area: prompts."""
    curves = evaluation["curves"]
    largest = max(*curves["reliability"]["n"], *curves["reliability_after_temperature_scaling"]["n"])
    for key, name, colour in (
        ("reliability", "Reliability as trained", JUDGE_COLOUR),
        ("reliability_after_temperature_scaling", "Reliability, temperature scaled", PROBE_COLOUR),
    ):
        curve = curves[key]
        figure.add_scatter(
            x=as_floats(np.array(curve["mean_probability"])), y=as_floats(np.array(curve["share_unsafe"])),
            customdata=as_floats(np.array(curve["n"])), mode="markers", name=name,
            marker={"color": colour, "size": as_floats(np.array(curve["n"])), "sizemode": "area",
                    "sizeref": 2 * largest / 16**2, "sizemin": 3},
            hovertemplate=f"{name}: P(unsafe) %{{x:.2f}}, unsafe %{{y:.2f}}, n %{{customdata:.0f}}<extra></extra>",
            **RELIABILITY,
        )  # fmt: skip
    diagonal = as_floats(np.array([0.0, 1.0]))
    figure.add_scatter(
        x=diagonal, y=diagonal, mode="lines", line={"color": REFERENCE_COLOUR, "dash": "dot", "width": 1},
        hoverinfo="skip", showlegend=False, **RELIABILITY,
    )  # fmt: skip
    figure.update_xaxes(title_text="P(unsafe) by the judge, mean of a bin", range=[-0.03, 1.03], **RELIABILITY)
    figure.update_yaxes(title_text="Share that is unsafe", range=[-0.03, 1.03], **RELIABILITY)


def add_groups(figure: go.Figure, evaluation: Mapping[str, Any]) -> None:
    """Accuracy of each category, the largest ones, below that of each source where there are several."""
    largest = sorted(evaluation["by_category"], key=lambda row: -row["n"])[:MOST_GROUPS]
    shown = sorted(largest, key=lambda row: row["accuracy"])
    if len(evaluation["by_source"]) > 1:
        shown += [{**row, "name": f"source {row['name']}"} for row in evaluation["by_source"]]
    names = {"accuracy": "Accuracy"}
    bars = [error_bars(row, names) for row in shown]
    figure.add_scatter(
        x=as_floats(np.array([row["accuracy"] for row in shown])),
        y=[f"{escape_text(row['name'], limit=24)} ({row['n']})" for row in shown],
        error_x={
            **(bars[0] if bars else {}),
            "array": as_floats(np.array([bar["array"][0] for bar in bars])),
            "arrayminus": as_floats(np.array([bar["arrayminus"][0] for bar in bars])),
        },
        mode="markers", marker={"color": JUDGE_COLOUR, "size": 8}, showlegend=False,
        hovertemplate="%{y}: %{x:.3f}<extra></extra>", **GROUPS,
    )  # fmt: skip
    figure.update_yaxes(tickfont_size=11, **GROUPS)
    figure.update_xaxes(title_text="Accuracy (number of prompts beside the name)", range=[0, 1.03], **GROUPS)


def add_layers(figure: go.Figure, evaluation: Mapping[str, Any], probes: Sequence[Mapping[str, Any]]) -> None:
    """Test accuracy of every layer's probe, with those of the judge and the bag of words as lines."""
    if probes:
        figure.add_scatter(
            x=[row["layer"] for row in probes],
            y=as_floats(np.array([row["test"]["accuracy"] for row in probes])),
            mode="lines+markers", name="Probe of each layer", line={"color": PROBE_COLOUR}, showlegend=False,
            hovertemplate="layer %{x}: %{y:.3f}<extra></extra>", **LAYERS,
        )  # fmt: skip
    lines = [("judge", JUDGE_COLOUR, evaluation["test"]["accuracy"])]
    lines += [
        (row["name"], WORDS_COLOUR, row["test"]["accuracy"]) for row in evaluation["baselines"] if row["layer"] is None
    ]
    for name, colour, accuracy in lines:
        figure.add_hline(
            y=accuracy, line={"color": colour, "dash": "dash", "width": 1.5}, **LAYERS,
            annotation={"text": name, "font": {"color": colour, "size": 12}}, annotation_position="bottom right",
        )  # fmt: skip
    figure.update_xaxes(title_text="Layer: hidden_states[l] before fine-tuning", dtick=max(1, len(probes) // 12),
                        **LAYERS)  # fmt: skip
    figure.update_yaxes(title_text="Accuracy on the test split", range=[0, 1.03], **LAYERS)


def add_thresholds(figure: go.Figure, rows: Sequence[Mapping[str, Any]]) -> None:
    """Recall and false-positive rate on the test split at each threshold."""
    names = [
        f"{row['chosen'].replace(' on validation', '').replace('false positives', 'FPR')}<br>{row['threshold']:+.2f}"
        for row in rows
    ]
    for measure, name, colour in (
        ("recall", "Recall of unsafe", NEUTRAL_COLOUR),
        ("false_positive_rate", "False-positive rate", REFERENCE_COLOUR),
    ):
        values = np.array([np.nan if row[measure] is None else row[measure] for row in rows])
        figure.add_bar(
            x=names, y=as_floats(values), name=name, marker_color=colour, text=[f"{value:.2f}" for value in values],
            textposition="outside", cliponaxis=False, hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>", **THRESHOLDS,
        )  # fmt: skip
    figure.update_xaxes(title_text="Threshold, and its margin in logits", tickangle=0, tickfont_size=11, **THRESHOLDS)
    figure.update_yaxes(title_text="Share on the test split", range=[0, 1.12], **THRESHOLDS)
