"""The evidence of one study at the layer that is clustered, and at every layer of its frame over the same rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Int

from src.utils.config import ClusteringConfig
from src.utils.decomposition.inputs import Evidence, build_evidence
from src.utils.errors import UserError


def study_evidence(
    frame: pd.DataFrame, tensors: Mapping[str, np.ndarray], clustering: ClusteringConfig, drop_flagged: bool
) -> tuple[Evidence, dict[str, Evidence]]:
    """The evidence that step 5 clusters, and that of every layer of the frame and of all of them jointly.

    The latter are over the rows that can be used at all layers. A layer at which EM and base model do not differ is
    not among them; at the configured one that raises `UserError` (see `build_evidence`).
    """
    kind = clustering.representation
    evidence = build_evidence(frame, tensors, kind, [clustering.layer], drop_flagged=drop_flagged)
    single: dict[int, Evidence] = {}
    for layer in frame_layers(frame):
        try:
            single[layer] = build_evidence(frame, tensors, kind, [layer], drop_flagged=drop_flagged)
        except UserError:
            continue
    if len(single) < 2:
        return evidence, {f"layer {layer}": one for layer, one in single.items()}
    joint = build_evidence(frame, tensors, kind, list(single), drop_flagged=drop_flagged)
    layers = {f"layer {layer}": restricted(one, joint.rows) for layer, one in single.items()}
    return evidence, layers | {f"layers {', '.join(map(str, single))} jointly": joint}


def frame_layers(frame: pd.DataFrame) -> list[int]:
    """The layers whose activations a study's frame holds."""
    return sorted(int(name.rsplit("_", 1)[1]) for name in frame if name.startswith("em_activations_layer_"))


def restricted(evidence: Evidence, rows: Int[np.ndarray, " rows"]) -> Evidence:
    kept = np.isin(evidence.rows, rows)
    frame = evidence.frame[kept].reset_index(drop=True)
    return Evidence(evidence.name, evidence.matrix[kept], evidence.base[kept], frame, evidence.rows[kept])
