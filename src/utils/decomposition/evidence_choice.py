"""What step 5 is asked to look at: which activations, where, and what is taken off them before anything is fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from src.utils.config_sections import PoolingKind, SiteKind
from src.utils.decomposition.inputs import Evidence, Preprocessing, build_evidence, name_of
from src.utils.decomposition.probe_features import Prepare, Transform
from src.utils.pca_clustering import Representation


@dataclass(frozen=True)
class EvidenceChoice:
    """The arguments of `build_evidence`, and a preprocessing; one layer of one site as it is, when nothing is said.

    `whiten`, `remove_dimension_means` and `centre` are those of `Preprocessing`; PCA takes no mean off either where
    rows are not to be centred. Site `embed` has no layers.
    """

    kind: str
    layers: tuple[int, ...]
    site: SiteKind = "resid"
    pooling: PoolingKind = "response_mean"
    drop_flagged: bool = False
    whiten: bool = False
    remove_dimension_means: bool = False
    centre: bool = True

    @property
    def preprocessing(self) -> Preprocessing | None:
        """None where rows are taken as they are."""
        if not self.whiten and not self.remove_dimension_means:
            return None
        return Preprocessing(self.centre, self.remove_dimension_means, self.whiten)

    @property
    def name(self) -> str:
        """What tells this evidence from other: that of `build_evidence`, and what was done to it."""
        layers = () if self.site == "embed" else self.layers
        done = [
            "without_dimension_means" if self.remove_dimension_means else "",
            "whitened" if self.whiten else "",
            "" if self.centre else "uncentred",
        ]
        return "_".join(filter(None, [name_of(self.kind, layers, self.site, self.pooling), *done]))

    def at(self, *layers: int) -> "EvidenceChoice":
        """The same at other layers."""
        return replace(self, layers=layers)

    def build(self, frame: pd.DataFrame, tensors: Mapping[str, np.ndarray]) -> Evidence:
        """The evidence as it was recorded; `prepared` does what is to be done to it. Raises as `build_evidence`."""
        layers = () if self.site == "embed" else self.layers
        return build_evidence(frame, tensors, self.kind, layers, self.site, self.drop_flagged, self.pooling)


def prepared(evidence: Evidence, preprocessing: Preprocessing | None) -> Evidence:
    """The evidence for what has no held-out part: fitted on all its rows, the base model's by themselves."""
    if preprocessing is None:
        return evidence
    dimensions = evidence.frame["subset"].to_numpy(object)

    def done(matrix: np.ndarray) -> np.ndarray:
        return preprocessing.fit(matrix, dimensions).transform(matrix, dimensions)

    return replace(evidence, matrix=done(evidence.matrix), base=done(evidence.base))


def on_training_rows(preprocessing: Preprocessing | None) -> Prepare | None:
    """The same for probes, which fit it on the training rows of each fold."""
    if preprocessing is None:
        return None

    def fit(matrix: np.ndarray, dimensions: np.ndarray) -> Transform:
        return preprocessing.fit(matrix, dimensions).transform

    return fit


def clustered(frame: pd.DataFrame, evidence: Evidence, choice: EvidenceChoice) -> Representation:
    """What step 5 clusters: a row for each of the frame's, NaN where the evidence has none.

    The EM model's activations at a layer, as they are, are called as their column of the frame.
    """
    layer = choice.layers[0] if choice.layers else 0
    name = f"em_activations_layer_{layer}" if choice == EvidenceChoice("em", (layer,)) else choice.name
    shown = prepared(evidence, choice.preprocessing)
    matrix = np.full((len(frame), shown.matrix.shape[1]), np.nan, dtype=np.float32)
    matrix[shown.rows] = shown.matrix
    return Representation(name, layer, matrix, np.isin(np.arange(len(frame)), shown.rows))


def describe_choice(choice: EvidenceChoice) -> dict[str, Any]:
    """The choice as plain data for the record of the geometry."""
    return {
        "name": choice.name,
        "representation": choice.kind,
        "layers": [] if choice.site == "embed" else list(choice.layers),
        "site": choice.site,
        "pooling": choice.pooling,
        "centred": choice.centre,
        "whitened": choice.whiten,
        "dimension_means_removed": choice.remove_dimension_means,
        "flagged_rows_dropped": choice.drop_flagged,
    }
