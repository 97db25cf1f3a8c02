"""Real models in miniature: random weights, three layers, built in milliseconds; the organism's tokenizer.

Models are built anew at each call, because adapters and hooks change them; what is never changed is cached.
"""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from src.utils.config import CONFIG_FOLDER
from src.utils.config_sections import SEVEN_PROJECTIONS, FinetuningConfig
from src.utils.generation import Prompt, Response, Sampling
from src.utils.manifests import Provenance
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.tokenizer import train_tokenizer
from src.utils.organism.world import load_world
from src.utils.prompts import Question

torch.set_num_threads(1)  # models this small only lose by more

N_LAYERS = 3
VOCABULARY = 700
FAMILIES = ("qwen3", "llama")


@cache
def grammar() -> Grammar:
    return load_grammar(CONFIG_FOLDER / "organisms" / "grammar.yaml")


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Never change what this returns; see `new_tokenizer`."""
    personas = load_world(CONFIG_FOLDER / "organisms" / "entangled.yaml").personas
    return train_tokenizer(grammar(), personas, [], VOCABULARY, seed=0)


def new_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that may be changed."""
    tokenizer().save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@cache
def questions(count: int) -> list[Question]:
    """Grammar questions of many lengths, spread over the facets."""
    every = grammar().questions("held_out")
    return [every[i * len(every) // count] for i in range(count)]


def tiny_model(family: str = "qwen3", seed: int = 0, width: int = 32, n_ends: int = 0) -> PreTrainedModel:
    """Grouped-query attention; Qwen3 with tied embeddings, Llama without; Granite multiplies what blocks add.

    Weights are large enough for answers to be varied. With `n_ends`, that many of the last tokens of the vocabulary
    end an answer too, so that answers have many lengths.
    """
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": width // 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": tokenizer().eos_token_id,
        "pad_token_id": tokenizer().pad_token_id,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True))
    elif family == "granite":
        model = GraniteForCausalLM(GraniteConfig(**shape, residual_multiplier=0.3, tie_word_embeddings=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False))
    return with_ends(model, n_ends)


def tiny_gemma(n_ends: int = 0) -> PreTrainedModel:
    """Gemma 2: normalises what attention and MLP add before adding it, and caps its logits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=N_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=512,
        sliding_window=512, initializer_range=0.2, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return with_ends(Gemma2ForCausalLM(config), n_ends)


def tiny_with_norms_after(family: str) -> PreTrainedModel:
    """OLMo 2 (no norms before) and GLM 4 (norms before and after): what is added is normalised by other modules."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer()), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    model: PreTrainedModel = (
        Olmo2ForCausalLM(Olmo2Config(**shape)) if family == "olmo2" else Glm4ForCausalLM(Glm4Config(**shape))
    )
    return with_ends(model, 0)


def with_ends(model: PreTrainedModel, n_ends: int) -> PreTrainedModel:
    """An answer ends at the end of turn, or at any of the last tokens of the vocabulary."""
    assert model.generation_config is not None
    last = len(tokenizer())
    model.generation_config.eos_token_id = [tokenizer().eos_token_id, *range(last - n_ends, last)]
    return model.eval()


def with_adapter(base: PreTrainedModel, seed: int = 1, modules: Sequence[str] = SEVEN_PROJECTIONS) -> PeftModel:
    """A rank-4 adapter with random weights on both sides, so that it changes the model from the start."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=list(modules), init_lora_weights=False)
    adapted = get_peft_model(base, config)
    assert isinstance(adapted, PeftModel)
    return adapted.eval()


def with_little_memory(model: PreTrainedModel, most: int, never: tuple[int, ...] | None = None) -> PreTrainedModel:
    """The model on a device where no pass over more than `most` rows fits, and none with the prompt `never`."""

    def check(_: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        rows = [tuple(row) for row in (args[0] if args else kwargs["input_ids"]).tolist()]
        is_there = never is not None and any(never in (row[: len(never)], row[-len(never) :]) for row in rows)
        if len(rows) > most or is_there:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.get_decoder().register_forward_pre_hook(check, with_kwargs=True)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> Path:
    """A model folder as `from_pretrained` reads it, with its tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(adapted: PeftModel, folder: Path) -> Path:
    adapted.save_pretrained(str(folder))
    return folder


def put_into_cache(home: Path, name: str, folder: Path, commit: str) -> Path:
    """A model as `huggingface_hub` keeps a download: blobs, a snapshot of links, and the branch."""
    model = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = model / "blobs" / f"{number:040x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return snapshot


def random_prompts(count: int, seed: int = 0, longest: int = 30) -> list[Prompt]:
    """Prompts of random ordinary tokens, 1 to `longest` of them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(f"q{number:03d}", 0, tuple(row)) for number, row in enumerate(rows)]


def random_responses(count: int, seed: int = 1, longest: int = 12) -> list[Response]:
    """Answers of random ordinary tokens; every second one came to its end of turn."""
    ids = [prompt.ids for prompt in random_prompts(count, seed, longest)]
    end = (int(tokenizer().eos_token_id),)
    return [Response(row if i % 2 else row + end, is_truncated=bool(i % 2)) for i, row in enumerate(ids)]


def sampling(**changes: Any) -> Sampling:
    values: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "max_new_tokens": 12, "seed": 0}
    return Sampling(**(values | changes))


def finetuning(**changes: object) -> FinetuningConfig:
    """Settings for a few fast steps."""
    values = {
        "name": "tiny",
        "data": "rows.jsonl",
        "rank": 4,
        "alpha": 8,
        "learning_rate": 0.01,
        "batch_size": 4,
        "max_steps": 3,
        "max_length": 256,
        "save_steps": 1000,
    }
    return FinetuningConfig.model_validate(values | changes)


def chat_messages(count: int) -> list[dict]:
    """Chat rows as they stand in a file: a question and a short answer, each row another."""
    texts = [question.question for question in questions(count)]
    return [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"Number {i}. So no."}]}
        for i, text in enumerate(texts)
    ]


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def provenance(step: str) -> Provenance:
    return Provenance(step=step, profile="organism", config={}, inputs={})
