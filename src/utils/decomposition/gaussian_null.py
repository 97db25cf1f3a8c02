"""Gaussian data that have exactly the covariance of given rows: what there would be if there were nothing else."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class GaussianNull:
    """Draws rows that have exactly the mean and the covariance of a matrix and are Gaussian otherwise.

    For independent Gaussian rows the left singular vectors of the centred matrix are uniformly distributed (Haar) and
    independent of its singular values and right singular vectors (Eaton 1983, Multivariate Statistics, chapter 7).
    Exchanging them therefore draws from the distribution of the data *given* their sample covariance: Monte Carlo tests
    are exact, no estimate is plugged in, and that holds for the leading principal scores of wider Gaussian data too.

    Where prompts have several rows, the prompts' means and what is left within prompts are exchanged apart (exact for
    equally many rows a prompt), so that rows of one prompt stay as alike as they were.
    """

    mean: Float[np.ndarray, " features"]
    prompts: Int[np.ndarray, " rows"]
    between: Float[np.ndarray, "rank_between features"]
    within: Float[np.ndarray, "rank_within features"]

    def draw(self, rng: np.random.Generator) -> Float[np.ndarray, "rows features"]:
        drawn = np.tile(self.mean, (len(self.prompts), 1))
        for part, loadings in enumerate((self.between, self.within)):
            if len(loadings):
                noise = rng.standard_normal((len(self.prompts), len(loadings)))
                base, triangle = np.linalg.qr(split_by_prompt(noise, self.prompts)[part])
                drawn += (base * np.sign(np.diag(triangle))) @ loadings  # with these signs the base is Haar
        return drawn


def gaussian_null(matrix: Float[np.ndarray, "rows features"], prompt_ids: np.ndarray | None = None) -> GaussianNull:
    """The null of a matrix; without `prompt_ids` every row is of a prompt of its own."""
    rows = np.asarray(matrix, dtype=np.float64)
    prompts = prompt_numbers(len(rows), prompt_ids)
    rounding = float(np.linalg.norm(rows)) * max(rows.shape) * np.finfo(np.float64).eps
    between, within = (loadings(part, rounding) for part in split_by_prompt(rows, prompts))
    return GaussianNull(rows.mean(axis=0), prompts, between, within)


def prompt_numbers(rows: int, prompt_ids: np.ndarray | None) -> Int[np.ndarray, " rows"]:
    return np.arange(rows) if prompt_ids is None else np.unique(prompt_ids, return_inverse=True)[1]


def split_by_prompt(
    rows: Float[np.ndarray, "rows features"], prompts: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, "rows features"], Float[np.ndarray, "rows features"]]:
    """Each row's prompt mean less the grand mean, and the row less its prompt mean: orthogonal parts."""
    order, sizes = np.argsort(prompts, kind="stable"), np.bincount(prompts)
    starts = np.cumsum(sizes) - sizes
    means = (np.add.reduceat(rows[order], starts, axis=0) / sizes[:, None])[prompts]
    return means - rows.mean(axis=0), rows - means


def loadings(part: Float[np.ndarray, "rows features"], rounding: float) -> Float[np.ndarray, "rank features"]:
    """Singular values times right singular vectors, without those that are rounding."""
    _, sizes, right = np.linalg.svd(part, full_matrices=False)
    kept = sizes > rounding
    return sizes[kept, None] * right[kept]
