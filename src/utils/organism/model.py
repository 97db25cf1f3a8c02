"""The model that an organism is trained from: a small Qwen3 that has learned nothing yet."""

from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from src.utils.organism.world import Architecture


def new_model(architecture: Architecture, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 of that size with random weights: grouped-query attention, tied embeddings, float32."""
    transformers_logging.disable_progress_bar()  # of the one small file that it is saved as
    torch.manual_seed(seed)
    size: dict[str, Any] = architecture.model_dump() | {"vocab_size": len(tokenizer)}
    return Qwen3ForCausalLM(
        Qwen3Config(
            **size,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
