"""How far two judges agree on the same answers: rank correlation, agreement beyond chance, and the size of differences.

Spearman's rho says whether they order answers alike; Cohen's kappa (Cohen 1960) whether they call the same ones
misaligned and coherent at the study's thresholds; the limits of agreement (Bland and Altman 1986: mean difference
plus and minus 1.96 standard deviations) how far apart two scores of one answer are.
"""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import ConstantInputWarning, spearmanr
from sklearn.metrics import cohen_kappa_score

from src.utils.judging.judgement import ARMS, missing_scores

SCORES = ("em_score", "coherence")


def agreement_of(
    first: pd.DataFrame, second: pd.DataFrame, em_threshold: float, coherence_threshold: float
) -> dict[str, Any]:
    """Both judges' names, what each has not scored, the measures of each score, and the pairs that they rest on.

    The frames hold the same rows in the same order. Answers that one judge has not scored are left out, and counted.
    A measure that is not defined (a judge that gives one score only, fewer than two pairs) is None.
    """
    judges = [first["judge"].iloc[0], second["judge"].iloc[0]]
    thresholds = {"em_score": em_threshold, "coherence": coherence_threshold}
    measures = []
    pairs = {}
    for score in SCORES:
        one, other = both_arms(first, score), both_arms(second, score)
        is_scored = np.isfinite(one) & np.isfinite(other)
        measures.append(
            {"score": score, "answers": len(one), "pairs": int(is_scored.sum())}
            | measure(one[is_scored], other[is_scored], thresholds[score])
        )
        pairs[score] = [[round(a, 3), round(b, 3)] for a, b in zip(one[is_scored], other[is_scored], strict=True)]
    return {
        "judges": judges,
        "missing": {name: missing_scores(frame) for name, frame in zip(judges, (first, second), strict=True)},
        "thresholds": thresholds,
        "measures": measures,
        "pairs": pairs,
    }


def both_arms(frame: pd.DataFrame, score: str) -> Float[np.ndarray, " answers"]:
    """The scores of EM answers, then of base answers."""
    return np.concatenate([frame[f"{prefix}{score}"].to_numpy(float) for prefix in ARMS.values()])


def measure(
    one: Float[np.ndarray, " pairs"], other: Float[np.ndarray, " pairs"], threshold: float
) -> dict[str, float | None]:
    """The measures of one score; differences are the second judge's score minus the first's, in points."""
    difference = other - one
    has_spread = len(one) > 1
    mean = float(difference.mean()) if len(one) else None
    deviation = float(difference.std(ddof=1)) if has_spread else None
    return {
        "spearman": spearman(one, other) if has_spread else None,
        "kappa": kappa(one > threshold, other > threshold) if len(one) else None,
        "mean_difference": mean,
        "lower_limit": mean - 1.96 * deviation if mean is not None and deviation is not None else None,
        "upper_limit": mean + 1.96 * deviation if mean is not None and deviation is not None else None,
    }


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        rho = float(spearmanr(one, other).statistic)
    return rho if np.isfinite(rho) else None


def kappa(one: np.ndarray, other: np.ndarray) -> float | None:
    """Cohen's kappa; not defined where both judges put all answers on the same side."""
    if len(np.unique(np.concatenate([one, other]))) < 2:
        return None
    return float(cohen_kappa_score(one, other))


def format_agreement(agreement: dict[str, Any]) -> str:
    """The measures as lines for a terminal."""
    first, second = agreement["judges"]

    def shown(value: float | None, digits: int) -> str:
        return "not defined" if value is None else f"{value:.{digits}f}"

    lines = [f"agreement of {first} and {second}"]
    for row in agreement["measures"]:
        limits = " to ".join(shown(row[name], 1) for name in ("lower_limit", "upper_limit"))
        lines.append(
            f"  {row['score']:<10} {row['pairs']} of {row['answers']} answers: Spearman {shown(row['spearman'], 3)}, "
            f"kappa at {agreement['thresholds'][row['score']]:g} {shown(row['kappa'], 3)}, "
            f"mean difference {shown(row['mean_difference'], 1)}, limits of agreement {limits}"
        )
    return "\n".join(lines)
