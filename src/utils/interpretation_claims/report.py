"""The verdict on every claim: held, did not hold, or not decided, corrected for the number of claims.

Held: above 0 at 5%, over seeds. Did not hold: below the least effect that would deserve the name at 5%, even where it
is above 0 (a course), or below 0 (an association). Each of the two families of tests is corrected by Holm. Everything
else is not decided: too few seeds, or too little of an effect.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from src.utils.decomposition.multiplicity import holm
from src.utils.interpretation_claims.claims import Claim, paired
from src.utils.interpretation_claims.exact_tests import association, exchange_p, sign_flip_p, sign_test_p
from src.utils.interpretation_claims.statistics import Training

ALPHA = 0.05
HELD, DID_NOT, UNDECIDED = "held", "did not hold", "not decided"
CORRECTED = ("p_for", "p_against")


def claims_report(claims: Sequence[Claim], trainings: Mapping[int, Training]) -> dict[str, Any]:
    """Everything about the claims as plain data; `trainings` by seed. Raises `ValueError` without a training."""
    if not trainings:
        raise ValueError("no training to test a claim on")
    rows = [tested(claim, trainings) for claim in claims]
    for name in CORRECTED:
        corrected = holm(np.array([row[name] for row in rows]))
        for row, p in zip(rows, corrected, strict=True):
            row[f"{name}_holm"] = float(p)
    for row in rows:
        row["verdict"] = verdict(row)
    accuracy = [training[-1].accuracy for training in trainings.values()]
    return {
        "seeds": [*trainings],
        "epochs": len(next(iter(trainings.values()))) - 1,
        "final_accuracy": {"mean": float(np.mean(accuracy)), "least": float(np.min(accuracy))},
        "alpha": ALPHA,
        "claims": rows,
    }


def tested(claim: Claim, trainings: Mapping[int, Training]) -> dict[str, Any]:
    """The claim's numbers by seed, its two p-values, uncorrected, and the trajectories to draw."""
    row: dict[str, Any] = {
        "name": claim.name, "document": claim.document, "statistic": claim.statistic, "kind": claim.kind,
        "trajectory_name": claim.trajectory_name,
        "trajectories": [list(claim.trajectory(training)) for training in trainings.values()],
    }  # fmt: skip
    if claim.kind == "association":
        first, second = paired(claim, list(trainings.values()))
        row |= {"n_seeds": len(first), "least": 0.0, "by_seed": [], "agreeing": None, "sign_test_p": None}
        if len(first) < 3:
            return row | {"estimate": None, "p_for": 1.0, "p_against": 1.0}
        above, below = exchange_p(first, second)
        estimate = association(first, second)
        return row | {
            "estimate": None if np.isnan(estimate) else estimate,
            "p_for": above,
            "p_against": below,
        }
    assert claim.of_seed is not None
    by_seed = [claim.of_seed(training) for training in trainings.values()]
    values = np.array([value for value in by_seed if value is not None])
    return row | {
        "n_seeds": len(values),
        "least": claim.least,
        "by_seed": by_seed,
        "estimate": float(values.mean()) if len(values) else None,
        "agreeing": int((values > 0).sum()),
        "sign_test_p": sign_test_p(values),
        "p_for": sign_flip_p(values),
        "p_against": sign_flip_p(claim.least - values),
    }


def verdict(row: Mapping[str, Any]) -> str:
    """What the corrected p-values say; an effect that is there but smaller than the least one did not hold."""
    if row["p_against_holm"] <= ALPHA:
        return DID_NOT
    return HELD if row["p_for_holm"] <= ALPHA else UNDECIDED


def format_verdicts(result: Mapping[str, Any]) -> list[list[str]]:
    """The table for a screen and a page, header first."""
    table = [["claim", "verdict", "seeds", "estimate", "least", "as claimed", "p for (Holm)", "p against (Holm)"]]
    for row in result["claims"]:
        estimate = "-" if row["estimate"] is None else f"{row['estimate']:+.3f}"
        agreeing = "-" if row["agreeing"] is None else f"{row['agreeing']} of {row['n_seeds']}"
        p = (f"{row[f'{name}_holm']:.4f}" for name in CORRECTED)
        name = row["name"].replace("_", " ")
        table.append([name, row["verdict"], str(row["n_seeds"]), estimate, f"{row['least']:g}", agreeing, *p])
    return table
