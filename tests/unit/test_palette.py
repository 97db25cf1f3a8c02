"""The colours of labels: theirs alone, and told apart by everyone."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from src.visualizations.palette import (
    ARM_COLOURS,
    CLUSTER_COLOURS,
    DIMENSION_COLOURS,
    LABEL_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
)

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
DEFICIENCIES = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def cielab(colour: str, deficiency: Sequence[Sequence[float]]) -> np.ndarray:
    """CIELAB under D65 of a colour as it is seen."""
    encoded = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratios = TO_XYZ @ np.clip(np.array(deficiency) @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    roots = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = roots
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_safe_and_unsafe_stay_apart_for_the_colour_blind(deficiency: str) -> None:
    seen = [cielab(colour, DEFICIENCIES[deficiency]) for colour in LABEL_COLOURS.values()]
    assert min(np.linalg.norm(one - other) for one, other in pairwise(seen)) > 30  # CIE76; 2.3 is just noticeable


def test_the_colour_of_a_label_means_nothing_else() -> None:
    others = {*DIMENSION_COLOURS.values(), *ARM_COLOURS.values(), *CLUSTER_COLOURS}
    assert not set(LABEL_COLOURS.values()) & (others | {MISSING_COLOUR, NEUTRAL_COLOUR, REFERENCE_COLOUR})
    assert list(LABEL_COLOURS) == ["safe", "unsafe"]
