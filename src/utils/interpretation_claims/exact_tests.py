"""Exact tests over a handful of trainings: signs flipped, seeds exchanged. The unit is the training, not the sample."""

from itertools import permutations
from math import factorial

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import binomtest, rankdata

MOST_EXACT_SEEDS = 18  # 2^18 sign patterns; beyond that, and for orders beyond 8 seeds, draws
MOST_EXACT_ORDERS = 8  # 40,320 orders
DRAWS = 9999


def sign_flip_p(values: Float[np.ndarray, " seeds"]) -> float:
    """One-sided p that the mean is above 0, over all patterns of signs (Fisher 1935); 1 without a value.

    Exact where, without an effect, a value is as likely to have either sign. Beyond `MOST_EXACT_SEEDS` the patterns are
    drawn, the observed one among them.
    """
    values = np.asarray(values, dtype=np.float64)
    count = len(values)
    if count == 0:
        return 1.0
    if count <= MOST_EXACT_SEEDS:
        patterns = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    else:
        patterns = np.random.default_rng(0).integers(0, 2, size=(DRAWS + 1, count))
        patterns[0] = 0
    sums = (1.0 - 2.0 * patterns) @ values
    return float(np.mean(sums >= values.sum() - 1e-9 * np.abs(values).sum()))


def sign_test_p(values: Float[np.ndarray, " seeds"]) -> float:
    """One-sided p that most values are above 0 (binomial); a 0 counts against it."""
    return float(binomtest(int(np.sum(values > 0)), len(values), alternative="greater").pvalue) if len(values) else 1.0


def association(first: Float[np.ndarray, "seeds epochs"], second: Float[np.ndarray, "seeds epochs"]) -> float:
    """Spearman's correlation over seeds at each epoch, averaged over epochs; NaN where no epoch has an order in both.

    What grows in every training alike, epoch by epoch, does not count.
    """
    return float(correlations(first, second, np.arange(len(first))[None])[0])


def exchange_p(
    first: Float[np.ndarray, "seeds epochs"], second: Float[np.ndarray, "seeds epochs"], seed: int = 0
) -> tuple[float, float]:
    """One-sided p of `association` being above and below 0: whole trainings of `second` exchanged among the seeds.

    All orders up to `MOST_EXACT_ORDERS` seeds, else `DRAWS` of them with the observed one (Phipson & Smyth 2010). Both
    are 1 where there is no association to speak of.
    """
    count = len(first)
    if count <= MOST_EXACT_ORDERS:
        orders = np.array(list(permutations(range(count)))).reshape(factorial(count), count)
    else:
        rng = np.random.default_rng(seed)
        orders = np.array([np.arange(count), *(rng.permutation(count) for _ in range(DRAWS))])
    found = correlations(first, second, orders)  # the observed order is the first
    if np.isnan(found[0]):
        return 1.0, 1.0
    return float(np.mean(found >= found[0] - 1e-12)), float(np.mean(found <= found[0] + 1e-12))


def correlations(
    first: Float[np.ndarray, "seeds epochs"],
    second: Float[np.ndarray, "seeds epochs"],
    orders: Int[np.ndarray, "orders seeds"],
) -> Float[np.ndarray, " orders"]:
    """The association with the seeds of `second` in each of the orders; epochs without an order are left out."""
    ranks = standardised_ranks(first), standardised_ranks(second)
    has_order = ~np.isnan(ranks[0]).any(axis=0) & ~np.isnan(ranks[1]).any(axis=0)
    if not has_order.any():
        return np.full(len(orders), np.nan)
    one, other = (each[:, has_order] for each in ranks)
    return np.einsum("se,ose->oe", one, other[orders]).mean(axis=1)


def standardised_ranks(values: Float[np.ndarray, "seeds epochs"]) -> Float[np.ndarray, "seeds epochs"]:
    """Ranks over seeds at each epoch, centred and of length 1, so that a product summed is Spearman's correlation."""
    ranks = rankdata(values, axis=0)
    centred = ranks - ranks.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    return np.divide(centred, length, out=np.full(centred.shape, np.nan), where=length > 0)
