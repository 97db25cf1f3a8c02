"""Resampling prompts, not rows: several answers to one prompt are drawn, split and exchanged together."""

import numpy as np
from jaxtyping import Bool, Float, Int


def prompt_weights(groups: np.ndarray, resamples: int, rng: np.random.Generator) -> Float[np.ndarray, "resamples rows"]:
    """How often each row occurs in each bootstrap resample of the prompts (Davison & Hinkley 1997, section 3.8)."""
    prompts, index = np.unique(groups, return_inverse=True)
    count = len(prompts)
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(float)[:, index]


def exchange_prompts(groups: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """A permutation of the rows that moves prompts as wholes: row i takes the place of row `result[i]`.

    Prompts change places with prompts of as many rows, so that rows of one prompt stay together; a prompt whose number
    of rows is unique stays where it is. With one row a prompt it is a permutation of the rows.
    """
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    by_prompt = np.argsort(index, kind="stable")
    starts = np.cumsum(sizes) - sizes
    order = np.arange(len(groups))
    for size in np.unique(sizes):
        places = by_prompt[starts[sizes == size][:, None] + np.arange(size)]
        order[places] = rng.permutation(places)
    return order


def halve_prompts(groups: np.ndarray, rng: np.random.Generator) -> Bool[np.ndarray, " rows"]:
    """Which rows belong to a random half of the prompts; of an odd number the half has one prompt less."""
    prompts, index = np.unique(groups, return_inverse=True)
    chosen = np.zeros(len(prompts), dtype=bool)
    chosen[rng.permutation(len(prompts))[: len(prompts) // 2]] = True
    return chosen[index]
