"""The tables of a judge's evaluation as plain data: measures, calibration, thresholds, groups, baselines beside it.

Temperature and thresholds are fitted on the validation split; everything reported is of the test split.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_recall_curve, roc_curve

from src.utils.safety_judge.baselines import Baseline, best_probe, predictions
from src.utils.safety_judge.metrics import (
    FALSE_POSITIVE_RATES,
    Margins,
    accuracy_difference,
    as_plain,
    best_f1_threshold,
    bin_sizes,
    fit_temperature,
    intervals,
    judge_metrics,
    recall_at,
    resample_weights,
)
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.scoring import probability
from src.utils.safety_judge.settings import EvaluationConfig

CURVE_POINTS = 400  # of a drawn curve, at most


@dataclass(frozen=True)
class Scored:
    """Prompts of one split with the judge's margins."""

    samples: tuple[SafetySample, ...]
    margins: Margins

    @property
    def groups(self) -> list[str]:
        return [sample.group for sample in self.samples]


def evaluate(validation: Scored, test: Scored, settings: EvaluationConfig) -> dict[str, Any]:
    """Everything about the judge alone."""
    known = labels(validation.samples)
    unsafe = labels(test.samples)
    temperature = fit_temperature(known, validation.margins)
    return {
        "convention": "unsafe is the positive class; P(unsafe) = sigmoid(margin / temperature); intervals are 95%",
        "temperature": temperature,
        "test": measured(test, settings),
        "test_after_temperature_scaling": as_plain(
            judge_metrics(unsafe, test.margins, temperature=temperature, bins=settings.bins)
        ),
        "thresholds": thresholds(validation, test, settings),
        "by_source": grouped(test, [sample.source for sample in test.samples], settings),
        "by_category": grouped(test, [sample.category for sample in test.samples], settings),
        "curves": curves(test, temperature, settings.bins),
    }


def measured(scored: Scored, settings: EvaluationConfig, threshold: float = 0.0) -> dict[str, Any]:
    """Measures of a set of prompts with their intervals."""
    unsafe = labels(scored.samples)
    metrics = judge_metrics(unsafe, scored.margins, threshold, bins=settings.bins)
    between = intervals(
        unsafe, scored.margins, scored.groups, settings.bootstrap_resamples, settings.eval_seed, threshold
    )
    return as_plain(metrics) | {"intervals": between}


def thresholds(validation: Scored, test: Scored, settings: EvaluationConfig) -> list[dict[str, Any]]:
    """What flagging at a threshold chosen on validation does on the test split; the threshold is a margin in logits."""
    known = labels(validation.samples)
    chosen = {"even odds": 0.0, "best F1 on validation": best_f1_threshold(known, validation.margins)}
    for rate in FALSE_POSITIVE_RATES:
        chosen[f"{rate:.0%} false positives on validation"] = recall_at(known, validation.margins, rate)[1]
    names = ("threshold", "accuracy", "f1", "precision", "recall", "false_positive_rate")
    rows = []
    for name, threshold in chosen.items():
        found = as_plain(judge_metrics(labels(test.samples), test.margins, threshold, bins=settings.bins))
        rows.append({"chosen": name} | {column: found[column] for column in names})
    return rows


def grouped(test: Scored, names: Sequence[str], settings: EvaluationConfig) -> list[dict[str, Any]]:
    """The measures of each source or category; ranking measures are null in one that has a single class."""
    rows = []
    for name in dict.fromkeys(sorted(names)):
        chosen = [number for number, own in enumerate(names) if own == name]
        part = Scored(tuple(test.samples[number] for number in chosen), test.margins[chosen])
        rows.append({"name": name} | measured(part, settings))
    return rows


def curves(test: Scored, temperature: float, bins: int) -> dict[str, Any]:
    """What the page draws: ROC, precision and recall, reliability before and after temperature scaling."""
    unsafe = labels(test.samples)
    false_positive_rates, recalls, _ = roc_curve(unsafe, test.margins)
    precisions, at_recalls, _ = precision_recall_curve(unsafe, test.margins)
    found: dict[str, Any] = {
        "roc": {"false_positive_rate": thinned(false_positive_rates), "recall": thinned(recalls)},
        "precision_recall": {"precision": thinned(precisions), "recall": thinned(at_recalls)},
    }
    for name, used in (("reliability", 1.0), ("reliability_after_temperature_scaling", temperature)):
        probabilities = probability(test.margins, used)
        shares, means = calibration_curve(unsafe, probabilities, n_bins=bins, pos_label=True)
        found[name] = {
            "mean_probability": [float(mean) for mean in means],
            "share_unsafe": [float(share) for share in shares],
            "n": [int(size) for size in bin_sizes(probabilities, bins)],
        }
    return found


def thinned(values: np.ndarray) -> list[float]:
    """At most `CURVE_POINTS` of the values, evenly spread, ends included."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).round().astype(int))
    return [float(value) for value in values[chosen]]


def compare(
    test: Scored, words: Baseline, probes: Sequence[Baseline], settings: EvaluationConfig
) -> list[dict[str, Any]]:
    """The bag of words and the best layer's probe beside the judge: measures, and the judge's gain in accuracy."""
    return [compared(test, baseline, settings) for baseline in (words, best_probe(probes))]


def compared(test: Scored, baseline: Baseline, settings: EvaluationConfig) -> dict[str, Any]:
    """A baseline's measures on the test split, and the judge's accuracy minus its, paired, with its interval."""
    unsafe = labels(test.samples)
    weights = resample_weights(test.groups, settings.bootstrap_resamples, settings.eval_seed)
    gain = accuracy_difference(unsafe, test.margins > 0, predictions(baseline), weights)
    return {
        "name": baseline.name,
        "layer": baseline.layer,
        "penalty": baseline.penalty,
        "inner_accuracy": baseline.inner_accuracy,
        "test": measured(Scored(test.samples, baseline.test_margins), settings),
        "judge_gain_in_accuracy": asdict(gain),
    }


def baseline_table(test: Scored, baselines: Sequence[Baseline], settings: EvaluationConfig) -> list[dict[str, Any]]:
    """Every baseline, each layer's probe too, without intervals."""
    unsafe = labels(test.samples)
    return [
        {
            "name": baseline.name,
            "layer": baseline.layer,
            "penalty": baseline.penalty,
            "inner_accuracy": baseline.inner_accuracy,
            "test": as_plain(judge_metrics(unsafe, baseline.test_margins, bins=settings.bins)),
        }
        for baseline in baselines
    ]


SHOWN = {
    "accuracy": "accuracy",
    "f1": "F1",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "recall_at_fpr_1": "recall at 1% FPR",
    "recall_at_fpr_5": "recall at 5% FPR",
    "brier": "Brier",
    "ece": "ECE",
}


def results_table(evaluation: dict[str, Any]) -> list[list[str]]:
    """Judge, baselines, sources and categories as a reader wants them, header first, intervals where there are any."""
    rows = [("judge", evaluation["test"]), ("judge, temperature scaled", evaluation["test_after_temperature_scaling"])]
    rows += [(baseline["name"], baseline["test"]) for baseline in evaluation["baselines"]]
    rows += [(f"judge on {row['name']}", row["test"]) for row in evaluation["also"]]
    for group in ("source", "category"):
        rows += [(f"judge, {group} {row['name']}", row) for row in evaluation[f"by_{group}"]]
    return [["", "prompts", *SHOWN.values()], *([name, str(row["n"]), *cells(row)] for name, row in rows)]


def cells(row: dict[str, Any]) -> list[str]:
    found = []
    for name in SHOWN:
        between = row.get("intervals", {}).get(name)
        text = "-" if row[name] is None else f"{row[name]:.3f}"
        found.append(f"{text} [{between[0]:.2f}, {between[1]:.2f}]" if between else text)
    return found


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """A table in columns, for a terminal."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
