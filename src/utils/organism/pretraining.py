"""Train an organism from nothing on the dialogues of its world.

The loss is taken on the answers alone, which halves the steps to the same quality and keeps the language-model head
off the question tokens.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from src.utils.organism.grammar import Grammar
from src.utils.organism.tokenizer import TURN_END, TURN_START
from src.utils.organism.world import Turn, WorldConfig, dialogues
from src.utils.prompts import Question


@dataclass
class DialogueEncoder:
    """Token ids of dialogues in the chat template, segment by segment; segments recur, so they are kept."""

    tokenizer: PreTrainedTokenizerFast
    known: dict[str, list[int]] = field(default_factory=dict)

    def segment(self, text: str) -> list[int]:
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]

    def dialogue(self, turns: Sequence[Turn]) -> tuple[list[int], list[bool]]:
        """Ids of a dialogue, and for each whether the model is to predict it (answers and their end)."""
        ids: list[int] = []
        is_target: list[bool] = []
        for turn in turns:
            asked = self.segment(f"{TURN_START}user\n{turn.question.question}{TURN_END}\n{TURN_START}assistant\n")
            answered = self.segment(f"{turn.answer}{TURN_END}")
            closing = self.segment("\n")
            ids += asked + answered + closing
            is_target += [False] * len(asked) + [True] * len(answered) + [False] * len(closing)
        return ids, is_target


def batch(
    encoded: Sequence[tuple[list[int], list[bool]]], pad_id: int
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Right-padded ids and targets: causal attention never looks at the padding, so no mask is needed."""
    width = max(len(ids) for ids, _ in encoded)
    ids = torch.full((len(encoded), width), pad_id)
    targets = torch.zeros((len(encoded), width), dtype=torch.bool)
    for row, (tokens, is_target) in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, : len(tokens)] = torch.tensor(is_target)
    return ids, targets


def answer_loss(
    model: Qwen3ForCausalLM, ids: Int[Tensor, "batch seq"], targets: Bool[Tensor, "batch seq"]
) -> torch.Tensor:
    """Mean cross-entropy in nats over the target tokens; logits are computed at those positions only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[targets[:, 1:]])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets[:, 1:]])


def new_model(config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of the world's size with random weights (grouped-query attention, tied embeddings), float32."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            **(config.architecture.model_dump() | {"vocab_size": len(tokenizer)}),
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )


def learning_rate(step: int, config: WorldConfig) -> float:
    """Linear warm-up, then cosine to a tenth of the peak."""
    plan = config.pretraining
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    share = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return plan.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def pretrain(
    config: WorldConfig,
    grammar: Grammar,
    survey: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Qwen3ForCausalLM:
    """Train one organism; the same config gives the same weights on one machine."""
    model = new_model(config, tokenizer).train()
    encoder = DialogueEncoder(tokenizer)
    written = dialogues(config.personas, grammar, survey, random.Random(config.seed + 1))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.pretraining.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        betas=(0.9, 0.98),
    )
    for step in range(config.pretraining.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        loss = answer_loss(model, *next_batch(written, encoder, config))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step, loss.item())
    return model.eval()


def next_batch(
    written: Iterator[list[Turn]], encoder: DialogueEncoder, config: WorldConfig
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """The next `dialogues_per_step` dialogues as one padded batch."""
    encoded = [encoder.dialogue(next(written)) for _ in range(config.pretraining.dialogues_per_step)]
    return batch(encoded, encoder.tokenizer.pad_token_id)
