"""A collection in miniature: a plan of a few questions, the arms of a tiny model, what becomes of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel

from src.utils.collection import ModelPass, Plan, collect_arms, model_passes, plan_collection, run_capture
from src.utils.collection_frame import assemble
from src.utils.collection_parts import ArmPart
from src.utils.config_sections import CollectionConfig
from src.utils.generation import Prompt, Response
from src.utils.sites import resid_site
from tests.tiny_models import N_LAYERS, questions, save_adapter, save_model, tiny_model, tokenizer, with_adapter

LAYERS = [1, 3]
SITES = [resid_site(layer, N_LAYERS).name for layer in range(N_LAYERS + 1)]
Collected = tuple[pd.DataFrame, dict[str, np.ndarray]]


def settings(**changes: object) -> CollectionConfig:
    values = {"prompts": ["unused"], "max_new_tokens": 8, "layers": LAYERS, "batch_size": 4, "top_k": 50, "top_p": 1.0}
    return CollectionConfig.model_validate(values | changes)


def plan(count: int = 10, **changes: object) -> Plan:
    return plan_collection(questions(count), tokenizer(), settings(**changes))


def base_model() -> PreTrainedModel:
    return tiny_model(n_ends=60)


def unused() -> PreTrainedModel:
    raise AssertionError("this model is not needed")


def adapter_passes() -> Iterator[ModelPass]:
    return model_passes(base_model, with_adapter, unused)


def collected(one: Plan, work_dir: Path, passes: Iterator[ModelPass] | None = None) -> Collected:
    collect_arms(one, tokenizer(), passes or adapter_passes(), work_dir)
    return assemble(one, tokenizer(), work_dir, LAYERS, N_LAYERS)


def means_of(model: PreTrainedModel | PeftModel, prompts: list[Prompt], said: list[Response]) -> np.ndarray:
    """What `run_capture` records at every layer: (rows, layers, d_model)."""
    part, _ = run_capture(model, tokenizer(), plan(1), prompts, said)
    return np.stack([part.pooled[site] for site in SITES], axis=1)


def part_of(responses: list[Response], means: np.ndarray) -> ArmPart:
    counted = np.array([len(response.ids) for response in responses])
    pooled = {site: means[:, layer] for layer, site in enumerate(SITES)}
    return ArmPart(responses, pooled, counted, np.zeros(len(responses), dtype=bool))


def save_model_folders(folder: Path) -> dict[str, Path]:
    """A base model, an adapter on it, and the two merged into a full checkpoint."""
    adapted = with_adapter(base_model())
    save_adapter(adapted, folder / "adapter")
    merged = adapted.merge_and_unload()
    save_model(merged, folder / "merged")
    save_model(base_model(), folder / "base")
    return {name: folder / name for name in ("base", "adapter", "merged")}
