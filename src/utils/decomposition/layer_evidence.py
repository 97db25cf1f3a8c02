"""The evidence of one study at the layer that is clustered, and at every layer of its frame over the same rows."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Int

from src.utils.config_sections import ClusteringConfig
from src.utils.decomposition.evidence_choice import EvidenceChoice
from src.utils.decomposition.inputs import Evidence
from src.utils.errors import UserError


def study_evidence(
    frame: pd.DataFrame, tensors: Mapping[str, np.ndarray], clustering: ClusteringConfig, drop_flagged: bool
) -> tuple[Evidence, dict[str, Evidence]]:
    """`chosen_evidence` of the configured choice."""
    return chosen_evidence(frame, tensors, configured_choice(clustering, drop_flagged))


def configured_choice(clustering: ClusteringConfig, drop_flagged: bool) -> EvidenceChoice:
    """What the configuration asks step 5 to look at."""
    return EvidenceChoice(
        clustering.representation,
        tuple(dict.fromkeys(clustering.layers_jointly)) or (clustering.layer,),
        clustering.site,
        clustering.pooling,
        drop_flagged,
        clustering.whiten,
        clustering.remove_dimension_means,
        clustering.centre,
    )


def chosen_evidence(
    frame: pd.DataFrame, tensors: Mapping[str, np.ndarray], choice: EvidenceChoice
) -> tuple[Evidence, dict[str, Evidence]]:
    """The evidence that step 5 clusters, and that of every layer of the frame and of all of them jointly.

    The latter are of the same site, over the rows that can be used at all layers. A layer at which EM and base model do
    not differ, or where the site was not recorded, is not among them; at the chosen one that raises `UserError` (see
    `build_evidence`). Nothing is preprocessed here. `embed` is one place: there are no layers beside it.
    """
    evidence = choice.build(frame, tensors)
    single: dict[int, Evidence] = {}
    for layer in frame_layers(frame) if choice.site != "embed" else []:
        try:
            single[layer] = choice.at(layer).build(frame, tensors)
        except UserError:
            continue
    if len(single) < 2:
        return evidence, {f"layer {layer}": one for layer, one in single.items()}
    joint = choice.at(*single).build(frame, tensors)
    layers = {f"layer {layer}": restricted(one, joint.rows) for layer, one in single.items()}
    return evidence, layers | {f"layers {', '.join(map(str, single))} jointly": joint}


def frame_layers(frame: pd.DataFrame) -> list[int]:
    """The layers whose activations a study's frame holds."""
    return sorted(int(name.rsplit("_", 1)[1]) for name in frame if name.startswith("em_activations_layer_"))


def restricted(evidence: Evidence, rows: Int[np.ndarray, " rows"]) -> Evidence:
    kept = np.isin(evidence.rows, rows)
    frame = evidence.frame[kept].reset_index(drop=True)
    return Evidence(evidence.name, evidence.matrix[kept], evidence.base[kept], frame, evidence.rows[kept])
