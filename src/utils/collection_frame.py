"""From the parts of a collection to the study's frame and its tensors, and what is odd about a row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32
from transformers import PreTrainedTokenizerBase

from src.utils.collection import Plan, tensor_names
from src.utils.collection_parts import ARMS, Arm, ArmPart, join_parts, part_path, read_part
from src.utils.errors import UserError
from src.utils.sites import resid_site

OUTLIER_ROBUST_DEVIATIONS = 10.0


def assemble(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, work_dir: Path, frame_layers: Sequence[int], n_layers: int
) -> tuple[pd.DataFrame, dict[str, Float32[np.ndarray, "rows width"]]]:
    """The study's frame, with the chosen layers, and the tensors of all sites, from the parts in the work folder."""
    if max(frame_layers) > n_layers:
        raise UserError(f"layer {max(frame_layers)}: the model has layers 0 to {n_layers}", 2)
    names = tensor_names(plan, n_layers)
    arms = {arm: read_arm(plan, work_dir, arm, names) for arm in ARMS}
    columns = {layer: resid_site(layer, n_layers).name for layer in frame_layers}

    frame = pd.DataFrame([question.model_dump() for question in plan.questions])
    frame.insert(1, "sample", [prompt.sample for prompt in plan.prompts])
    frame = frame[["prompt_id", "sample", "question", "subset", "facet", "keyed"]]
    for arm in ("base", "em"):
        ids = [list(response.ids) for response in arms[arm].responses]
        frame[f"{arm}_response"] = [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    for arm in ARMS:
        for layer, name in columns.items():
            frame[f"{arm}_activations_layer_{layer}"] = list(arms[arm].pooled[name])
    frame["flags"] = row_flags(arms, list(columns.values()))
    tensors = {
        f"{arm}.{name}": np.ascontiguousarray(values)
        for arm, recorded in arms.items()
        for name, values in recorded.pooled.items()
    }
    return frame, tensors


def read_arm(plan: Plan, work_dir: Path, arm: Arm, names: Sequence[str]) -> ArmPart:
    """Everything that an arm recorded, rows in the order of the plan's prompts, tensors in that of `names`."""
    joined = join_parts([read_part(part_path(work_dir, arm, number)) for number in range(len(plan.batches))])
    order = [row for batch in plan.batches for row in batch]
    place = np.argsort(order)  # where in `joined` each row of the plan stands
    return ArmPart(
        [joined.responses[i] for i in place],
        {name: joined.pooled[name][place] for name in names},
        joined.counted[place],
        joined.is_split[place],
        {order[i]: why for i, why in joined.failures.items()},
    )


def row_flags(arms: Mapping[Arm, ArmPart], frame_sites: Sequence[str]) -> list[list[str]]:
    """What is odd about each row; the row is kept.

    `failed_<arm>`: no answer or no activations, the reason was said when it happened; `truncated_<arm>`: no end of
    turn within `max_new_tokens`; `empty_<arm>`: no token that counts, so no mean; `non_finite_<arm>`: NaN or infinity
    in anything that was recorded; `norm_outlier_<arm>`: at a layer of the frame, a norm over 10 robust standard
    deviations (1.4826 x MAD) from the median; `split_<arm>`: run in a smaller batch because memory ran out or a row
    failed, so that last bits may differ.
    """
    flags: list[list[str]] = [[] for _ in arms["em"].responses]
    for arm, recorded in arms.items():
        values = np.stack([recorded.pooled[site] for site in frame_sites], axis=1)
        is_finite = finite_rows(recorded)
        is_outlier = norm_outliers(np.linalg.norm(values, axis=2))
        for row, response in enumerate(recorded.responses):
            if row in recorded.failures:
                flags[row].append(f"failed_{arm}")
                continue
            if response.is_truncated and arm != "base_on_em":
                flags[row].append(f"truncated_{arm}")
            if recorded.counted[row] == 0:
                flags[row].append(f"empty_{arm}")
            if not is_finite[row]:
                flags[row].append(f"non_finite_{arm}")
            elif is_outlier[row]:
                flags[row].append(f"norm_outlier_{arm}")
            if recorded.is_split[row]:
                flags[row].append(f"split_{arm}")
    return flags


def finite_rows(recorded: ArmPart) -> Bool[np.ndarray, " rows"]:
    """Rows that are finite at every site and pooling; where no answer token counts, there is no mean to be finite."""
    is_finite = np.ones(len(recorded.responses), dtype=bool)
    for values in recorded.pooled.values():
        has_no_mean = (recorded.counted == 0) & np.isnan(values).all(axis=1)
        is_finite &= np.isfinite(values).all(axis=1) | has_no_mean
    return is_finite


def norm_outliers(norms: Float32[np.ndarray, "rows layers"]) -> Bool[np.ndarray, " rows"]:
    """Rows whose norm at any layer is further than 10 robust standard deviations from that layer's median."""
    finite = norms[np.isfinite(norms).all(axis=1)]
    if len(finite) == 0:
        return np.zeros(len(norms), dtype=bool)
    centre = np.median(finite, axis=0)
    scale = 1.4826 * np.median(np.abs(finite - centre), axis=0)
    deviation = np.abs(np.where(np.isfinite(norms), norms, centre) - centre)
    return (deviation > OUTLIER_ROBUST_DEVIATIONS * np.maximum(scale, 1e-6)).any(axis=1)
