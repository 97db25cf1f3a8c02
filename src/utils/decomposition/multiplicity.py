"""p-values of one and of many Monte Carlo tests that share their draws of the null; large values speak against it.

How any of them is printed is `stated_p`: the least that so many draws allow is not mistaken for one that was found.
"""

import numpy as np
from jaxtyping import Float


def monte_carlo_p(
    observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "draws tests"]
) -> Float[np.ndarray, " tests"]:
    """(1 + draws that are at least as large) / (1 + draws), which is never 0 (Phipson & Smyth 2010)."""
    return (1 + (null >= observed).sum(axis=0)) / (1 + len(null))


def max_statistic_p(
    observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "draws tests"]
) -> Float[np.ndarray, " tests"]:
    """p-values corrected for all tests: single-step maxT on standardised statistics (Westfall & Young 1993, section 2).

    Each statistic is centred and scaled by its mean and standard deviation over draws and observation together, so that
    the observation is exchangeable with the draws under the null and the family-wise error rate exact; one that
    never varies counts 0.
    """
    pooled = np.vstack([observed, null])
    spread = pooled.std(axis=0)
    varies = spread > np.abs(pooled).max(axis=0) * 1e-12
    standard = np.where(varies, (pooled - pooled.mean(axis=0)) / np.where(varies, spread, 1), 0.0)
    largest = standard[1:].max(axis=1)
    return (1 + (largest[:, None] >= standard[0]).sum(axis=0)) / (1 + len(null))


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Holm's (1979) step-down correction; NaN stays NaN and counts as no test."""
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return corrected


def stated_p(p: float, draws: int, tests: int = 1) -> str:
    """A p-value as it is printed: "p 0.03", and "p ≤ 0.001, 1,000 draws" where it is the least that they allow.

    `draws` of the null or permutations; `tests` is over how many of them `holm` corrected.
    """
    is_least = p < 1 and p <= tests / (1 + draws) * (1 + 1e-9)
    return f"p ≤ {p:.2g}, {draws:,} draws" if is_least else f"p {p:.2g}"
