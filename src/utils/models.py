"""Loading base models, adapters and full checkpoints; deciding whether they fit each other.

Whether an adapter fits is decided by shapes, not by names. Weights are read from safetensors only, and no model code
from a hub is run.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.model_files import find_file, local_or_hub, unavailable

SMALL_MODEL = 10_000_000  # parameters; below, several threads cost more than they save
ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"

# what peft asks of every model has another name in transformers 5
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def pick_device() -> torch.device:
    """CUDA, else MPS, else CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the forward pass: `auto` is bfloat16 on a GPU that has it, float32 elsewhere."""
    if name != "auto":
        return getattr(torch, name)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model; one without a chat template or an end-of-turn token raises `UserError`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(local_or_hub(model), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise unavailable(model, error) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
        raise UserError(f"{model}: its tokenizer has no chat template or no end-of-turn token; name a chat model")
    return tokenizer


def load_model(model: str, settings: ModelConfig) -> PreTrainedModel:
    """A causal language model in evaluation mode on the best device at hand."""
    transformers_logging.disable_progress_bar()
    device = pick_device()
    placement = {"device_map": settings.device_map} if settings.device_map else {}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            local_or_hub(model),
            dtype=pick_dtype(settings.dtype, device),
            trust_remote_code=False,
            use_safetensors=True,
            **placement,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unavailable(model, error) from error
    if not settings.device_map:
        loaded.to(device)
    return loaded.eval()


def load_adapter(base: PreTrainedModel, adapter: str) -> PeftModel:
    """Put an adapter on a base model; the weights are shared, `disable_adapter()` gives the base back.

    An adapter whose shapes do not fit raises `UserError`.
    """
    weights = find_file(adapter, ADAPTER_WEIGHTS)
    if weights is None:
        raise UserError(f"{adapter}: has no {ADAPTER_WEIGHTS}; only safetensors adapters are loaded")
    check_adapter_fits(base, weights, adapter)
    try:
        return PeftModel.from_pretrained(base, local_or_hub(adapter)).eval()
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise unavailable(adapter, error) from error


def check_adapter_fits(base: PreTrainedModel, weights: Path, adapter: str) -> None:
    """Compare every LoRA matrix with the module that it adapts; the first that does not fit raises `UserError`."""
    modules = dict(base.named_modules())
    remedy = "name the base model that it was trained on (--base-model)"
    try:
        with safe_open(weights, framework="pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: no safetensors file ({error}); make the adapter again with step 2") from error
    for name, shape in shapes.items():
        suffix = next((ending for ending in (LORA_A, LORA_B) if name.endswith(ending)), None)
        if suffix is None:
            continue
        path = name.removeprefix("base_model.model.").removesuffix(suffix)
        module = modules.get(path)
        if not isinstance(module, nn.Linear):
            raise UserError(f"{adapter}: adapts {path}, which the base model does not have; {remedy}")
        wanted = module.in_features if suffix == LORA_A else module.out_features
        found = shape[1] if suffix == LORA_A else shape[0]
        if found != wanted:
            side = "inputs" if suffix == LORA_A else "outputs"
            raise UserError(f"{adapter}: {path} has {found} {side}, the base model's has {wanted}; {remedy}")


def check_checkpoint_fits(base: str, checkpoint: str) -> None:
    """Raise `UserError` if a full checkpoint has another width or depth than the base that it is compared with."""
    for name in ("hidden_size", "num_hidden_layers"):
        wanted, found = getattr(text_config(base), name), getattr(text_config(checkpoint), name)
        if wanted != found:
            raise UserError(f"{checkpoint}: {name} is {found}, {base} has {wanted}; name its base model (--base-model)")


def text_config(model: str) -> PretrainedConfig:
    """The config of a model's language part."""
    try:
        return AutoConfig.from_pretrained(local_or_hub(model), trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise unavailable(model, error) from error


def check_blocks(model: str, blocks: Sequence[int]) -> None:
    """Raise `UserError` (exit code 2) for a block to adapt that the model lacks; peft would pass over it in silence."""
    count = text_config(model).num_hidden_layers
    missing = [block for block in blocks if not 0 <= block < count]
    if missing:
        raise UserError(f"block {missing[0]}: {model} has blocks 0 to {count - 1}; choose --layers among them", 2)


def check_layers(model: str, layers: Sequence[int]) -> None:
    """Raise `UserError` (exit code 2) for a layer that the model lacks.

    Layer l is `hook_resid_pre` of block l, Hugging Face's `hidden_states[l]`; l = number of blocks is the residual
    stream after the last block, before the final norm.
    """
    blocks = text_config(model).num_hidden_layers
    missing = [layer for layer in layers if not 0 <= layer <= blocks]
    if missing:
        raise UserError(f"layer {missing[0]}: {model} has blocks 0 to {blocks - 1}; choose layers 0 to {blocks}", 2)
