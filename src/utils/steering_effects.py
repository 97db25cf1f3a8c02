"""What steering did: rates by vector, coefficient and dimension asked about, and their change from the unsteered arm.

The rates are those of `em_rates`. A change pairs each steered answer with the unsteered one to the same prompt and
sample, which was drawn with the same noise; both kinds of interval are over prompts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from src.utils.em_rates import OVERALL, mean_over_prompts, outcomes, rate_over_prompts

NO_VECTOR, NO_KIND = "none", "unsteered"
RANDOM = "random"  # kind of the control directions
MEASURES = ("em", "em_on_topic", "on_topic", "coherent")
ARM = ["vector", "kind", "coefficient"]
KEYS = ["prompt_id", "sample"]


def steering_effects(
    answers: pd.DataFrame, em_threshold: float, coherence_threshold: float, resamples: int, seed: int
) -> pd.DataFrame:
    """Tidy table, a row an arm, dimension (and `all`) and measure.

    Columns `vector, kind, coefficient, share_of_residual_norm, subset, measure, estimate, low, high, n, change,
    change_low, change_high`: shares, n answers. What no answer tells is NaN.
    """
    unsteered = answers[answers["kind"] == NO_KIND]
    rows = []
    for (vector, kind, coefficient), arm in answers.groupby(ARM, sort=False):  # ty: ignore[not-iterable]
        share = float(arm["share_of_residual_norm"].iloc[0])
        for subset in [*dict.fromkeys(answers["subset"]), OVERALL]:
            part = arm if subset == OVERALL else arm[arm["subset"] == subset]
            before = unsteered if subset == OVERALL else unsteered[unsteered["subset"] == subset]
            prompts = part["prompt_id"].to_numpy()
            if not before[KEYS].reset_index(drop=True).equals(part[KEYS].reset_index(drop=True)):
                raise ValueError(f"arm {vector} {coefficient}: its prompts are not those of the unsteered arm")
            for measure in MEASURES:
                hit, counted = outcomes(part, "", measure, em_threshold, coherence_threshold)
                base_hit, base_counted = outcomes(before, "", measure, em_threshold, coherence_threshold)
                rng = np.random.default_rng(seed)
                rate = rate_over_prompts(hit, counted, prompts, resamples, rng)
                moved: Float[np.ndarray, " rows"] = hit.astype(float) - base_hit.astype(float)
                change = mean_over_prompts(moved, counted & base_counted, prompts, resamples, rng)
                rows.append((vector, kind, coefficient, share, subset, measure, *rate, int(counted.sum()), *change))
    names = ["share_of_residual_norm", "subset", "measure", "estimate", "low", "high", "n"]
    return pd.DataFrame(rows, columns=[*ARM, *names, "change", "change_low", "change_high"])


def length_of_randoms(vectors: Sequence[Mapping[str, Any]]) -> str:
    """How long the random directions are; they are drawn once, for vectors of all lengths."""
    return f"as long as the longest vector (norm {max(vector['norm'] for vector in vectors):.3g})"


def steering_summary(
    effects: pd.DataFrame,
    vectors: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    missing: Mapping[str, int],
) -> dict[str, Any]:
    """The table and what it rests on as plain data, null where there is nothing; `vectors` as `describe` has them."""
    return {
        "settings": dict(settings),
        "vectors": [dict(vector) for vector in vectors],
        "effects": effects.astype(object).where(effects.notna(), None).to_dict("records"),
        "missing": dict(missing),
    }


def effects_from_json(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The table that `steering_summary` wrote."""
    effects = pd.DataFrame(summary["effects"])
    numbers = [
        "coefficient",
        "share_of_residual_norm",
        "estimate",
        "low",
        "high",
        "change",
        "change_low",
        "change_high",
    ]
    return effects.astype(dict.fromkeys(numbers, float))


def format_effects(effects: pd.DataFrame) -> str:
    """A line a vector and coefficient: misaligned and on topic by dimension, and coherent overall, in per cent."""
    rows = ["vector", "coefficient"]
    shown = effects[effects["measure"] == "em_on_topic"]
    subsets = [*dict.fromkeys(shown["subset"])]
    table = shown.set_index([*rows, "subset"])["estimate"].unstack("subset", sort=False)[subsets]
    coherent = effects[(effects["measure"] == "coherent") & (effects["subset"] == OVERALL)]
    table["coherent"] = coherent.set_index(rows)["estimate"]
    header = f"{'vector':<24} {'x':>6}  " + "  ".join(f"{name[:18]:>18}" for name in table.columns)
    lines = [
        f"{vector:<24} {coefficient:>6g}  " + "  ".join(f"{100 * value:>17.0f}%" for value in row)
        for (vector, coefficient), row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join([header, *lines])
