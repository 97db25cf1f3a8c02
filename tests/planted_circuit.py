"""A model whose circuit is known because its weights are set by hand: a word, one head, one neuron, the margin.

The safe and the unsafe word are embedded as opposite vectors, so that all norms are the same for both. Head `HEAD` of
block `COPY` attends evenly and moves that vector to the last token; neuron `NEURON` of block `READ` reads it there and
writes the direction on which the margin rests. Every other weight of the blocks is zero.
"""

import random
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from src.utils.circuits.contrast import ContrastPairs, Margin, ReadMargin
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt
from src.utils.sites import AnyModel

SAFE, UNSAFE, PAD, END, ANSWER_SAFE, ANSWER_UNSAFE = 1, 2, 0, 3, 4, 5
FILLERS = range(6, 20)
COPY, HEAD, READ, NEURON = 1, 2, 2, 5
WORD, CONSTANT, MOVED, DECISION = range(4)  # directions of the residual stream
N_LAYERS, N_HEADS, N_KV_HEADS, WIDTH, D_HEAD, N_NEURONS = 3, 4, 2, 16, 4, 24


def planted_model() -> PreTrainedModel:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=WIDTH, intermediate_size=N_NEURONS, num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS, num_key_value_heads=N_KV_HEADS, head_dim=D_HEAD, tie_word_embeddings=False,
            pad_token_id=PAD, bos_token_id=None, eos_token_id=END,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        embeddings = model.get_parameter("model.embed_tokens.weight")
        embeddings[:, CONSTANT] = 1.0
        embeddings[UNSAFE, WORD], embeddings[SAFE, WORD] = 1.0, -1.0
        attention = f"model.layers.{COPY}.self_attn"
        kv_head = HEAD // (N_HEADS // N_KV_HEADS)
        model.get_parameter(f"{attention}.v_proj.weight")[kv_head * D_HEAD, WORD] = 3.0
        model.get_parameter(f"{attention}.o_proj.weight")[MOVED, HEAD * D_HEAD] = 2.0
        mlp = f"model.layers.{READ}.mlp"
        model.get_parameter(f"{mlp}.gate_proj.weight")[NEURON, CONSTANT] = 2.0
        model.get_parameter(f"{mlp}.up_proj.weight")[NEURON, MOVED] = 1.0
        model.get_parameter(f"{mlp}.down_proj.weight")[DECISION, NEURON] = 1.5
        head = model.get_parameter("lm_head.weight")
        head[ANSWER_UNSAFE, DECISION], head[ANSWER_SAFE, DECISION] = 2.0, -2.0
    return model.eval()


def answer_margin(model: AnyModel, unsafe_id: int = ANSWER_UNSAFE, safe_id: int = ANSWER_SAFE) -> Margin:
    """The difference of two logits at each row's last real token."""
    return Margin(model, answer_of(unsafe_id, safe_id))


def answer_of(unsafe_id: int = ANSWER_UNSAFE, safe_id: int = ANSWER_SAFE) -> ReadMargin:
    return lambda logits, ids, mask: logits[:, unsafe_id] - logits[:, safe_id]


def planted_data(
    count: int, seed: int = 0, words: Callable[[bool], int] = lambda unsafe: UNSAFE if unsafe else SAFE
) -> tuple[list[SafetySample], list[EncodedPrompt]]:
    """`count` pairs of several lengths that differ in the planted word, wherever it stands."""
    rng = random.Random(seed)
    samples, rows = [], []
    for number in range(count):
        others = rng.choices(FILLERS, k=rng.randint(2, 6))
        place = rng.randrange(len(others) + 1)
        for unsafe in (False, True):
            ids = (*others[:place], words(unsafe), *others[place:], END)
            samples.append(SafetySample(f"{number}-{unsafe}", "", unsafe, "planted", "test", f"p{number:03d}"))
            rows.append(EncodedPrompt(ids, (0, len(ids) - 1)))
    return samples, rows


def random_pairs(count: int, length: int, seed: int = 0, lowest: int = 6, highest: int = 20) -> ContrastPairs:
    """Pairs of random tokens without padding that differ in two places, never in the last token."""
    generator = torch.Generator().manual_seed(seed)
    safe = torch.randint(lowest, highest, (count, length), generator=generator)
    unsafe = safe.clone()
    for row in range(count):
        places = torch.randperm(length - 1, generator=generator)[:2]
        unsafe[row, places] = lowest + (safe[row, places] - lowest + 1) % (highest - lowest)
    return ContrastPairs(safe, unsafe, torch.ones_like(safe), tuple(map(str, range(count))))
