"""The two models that benchmarks/collection.py asks: the organism, or Qwen3-4B's shapes, each under an adapter."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from src.utils.config import Config
from src.utils.config_sections import SEVEN_PROJECTIONS, ModelConfig
from src.utils.models import load_model, load_tokenizer, pick_device


def models_of(architecture: str, config: Config) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """Base and EM model in one: an adapter whose B is not zero. Random weights where the real ones cannot be had."""
    organism = ModelConfig(base="data/organisms/entangled")
    tokenizer = load_tokenizer(organism.base)
    if architecture == "organism":
        base: PreTrainedModel = load_model(organism.base, organism)
        rank = config.finetuning.rank
    else:
        base, rank = random_qwen3_4b(), config.finetuning.rank
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=rank, lora_alpha=64, target_modules=SEVEN_PROJECTIONS))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    assert isinstance(adapted, PeftModel)
    return tokenizer, adapted.eval()


def random_qwen3_4b() -> PreTrainedModel:
    """Qwen3-4B's shapes (its config.json) with random weights, in bfloat16; the organism's tokenizer names its ids."""
    shape = Qwen3Config(
        vocab_size=151_936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0}, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    device = pick_device()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    with device:
        model = Qwen3ForCausalLM(shape)
    torch.set_default_dtype(before)
    return model.eval()
