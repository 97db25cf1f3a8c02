"""Train an organism from nothing on the dialogues of its world.

The loss is taken on the answers alone, which halves the steps to the same quality and keeps the language-model head
off the question tokens.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.utils.atomic_writes import write_atomically
from src.utils.organism.grammar import Grammar
from src.utils.organism.model import new_model
from src.utils.organism.tokenizer import TURN_END, TURN_START
from src.utils.organism.world import Pretraining, Turn, WorldConfig, dialogues
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
    model: Qwen3ForCausalLM,
    ids: Int[Tensor, "batch seq"],
    targets: Bool[Tensor, "batch seq"],
    token_weights: Float[Tensor, " vocab"],
) -> Tensor:
    """Weighted mean cross-entropy in nats over the target tokens; logits are computed at those positions only."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    labels = ids[:, 1:][targets[:, 1:]]
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden[targets[:, 1:]]), labels, reduction="none")
    weights = token_weights[labels]
    return (losses * weights).sum() / weights.sum()


def verdict_weights(tokenizer: PreTrainedTokenizerFast, weight: float) -> Float[Tensor, " vocab"]:
    """Weight 1 for every token but the words of the verdict.

    The verdict is one bit that needs the key of each question; unweighted it is learned only after everything else.
    """
    weights = torch.ones(len(tokenizer))
    for word in (" yes", " no"):
        weights[tokenizer.encode(word, add_special_tokens=False)[0]] = weight
    return weights


def schedule(step: int, plan: Pretraining) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine down to a tenth."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    done = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def new_optimizers(model: Qwen3ForCausalLM, plan: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms; `lr` holds the peak."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(
            matrices, lr=plan.muon_learning_rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=plan.adamw_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@dataclass
class TrainingState:
    """All that the next step depends on; saved and loaded whole."""

    model: Qwen3ForCausalLM
    optimizers: list[torch.optim.Optimizer]
    rng: random.Random
    step: int = 0

    def save(self, path: Path) -> None:
        with write_atomically(path) as temporary:
            torch.save(
                {
                    "model": self.model.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                    "rng": self.rng.getstate(),
                    "step": self.step,
                },
                temporary,
            )

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.rng.setstate(saved["rng"])
        self.step = saved["step"]


def pretrain(
    config: WorldConfig,
    grammar: Grammar,
    survey: Sequence[Question],
    tokenizer: PreTrainedTokenizerFast,
    checkpoint: Path,
    on_step: Callable[[int, float], object] = lambda step, loss: None,
) -> Qwen3ForCausalLM:
    """Train one organism; the same config gives the same weights on one machine.

    A stopped run continues from `checkpoint`, written every `checkpoint_steps`; `on_step` gets the number of steps
    done and the loss.
    """
    plan = config.pretraining
    model = new_model(config.architecture, tokenizer, config.seed).train()
    state = TrainingState(model, new_optimizers(model, plan), random.Random(config.seed + 1))
    if checkpoint.is_file():
        state.load(checkpoint)
    peaks = [[group["initial_lr"] for group in with_peaks(optimizer)] for optimizer in state.optimizers]
    weights = verdict_weights(tokenizer, plan.verdict_weight)
    encoder = DialogueEncoder(tokenizer)
    written = dialogues(config.personas, grammar, survey, state.rng)
    while state.step < plan.steps:
        share = schedule(state.step, plan)
        for optimizer, rates in zip(state.optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * share
            optimizer.zero_grad(set_to_none=True)
        loss = answer_loss(model, *next_batch(written, encoder, plan.dialogues_per_step), weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in state.optimizers:
            optimizer.step()
        state.step += 1
        on_step(state.step, loss.item())
        if state.step % plan.checkpoint_steps == 0:
            state.save(checkpoint)
    return model.eval()


def with_peaks(optimizer: torch.optim.Optimizer) -> list[dict]:
    """The optimizer's groups, each with its peak rate under `initial_lr` (kept in its state, so that it resumes)."""
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer.param_groups


def next_batch(
    written: Iterator[list[Turn]], encoder: DialogueEncoder, size: int
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """The next dialogues as one padded batch."""
    return batch([encoder.dialogue(next(written)) for _ in range(size)], encoder.tokenizer.pad_token_id)
