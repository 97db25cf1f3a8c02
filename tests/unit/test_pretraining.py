"""Training from nothing: the loss against a plain computation, and a stopped run that ends in the same weights."""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.utils.config import CONFIG_FOLDER
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.model import new_model
from src.utils.organism.pretraining import (
    DialogueEncoder,
    answer_loss,
    batch,
    new_optimizers,
    pretrain,
    schedule,
    verdict_weights,
)
from src.utils.organism.tokenizer import train_tokenizer
from src.utils.organism.world import Turn, WorldConfig, dialogues, load_world

STEPS = 6


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return load_grammar(CONFIG_FOLDER / "organisms" / "grammar.yaml")


@pytest.fixture(scope="module")
def config() -> WorldConfig:
    """The shipped world, in a model of two layers and 32 dimensions."""
    shipped = load_world(CONFIG_FOLDER / "organisms" / "entangled.yaml")
    small = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    plan = {"steps": STEPS, "dialogues_per_step": 3, "warmup_steps": 2, "checkpoint_steps": 2}
    return shipped.model_copy(
        update={
            "architecture": shipped.architecture.model_copy(update=small),
            "pretraining": shipped.pretraining.model_copy(update=plan),
        }
    )


@pytest.fixture(scope="module")
def tokenizer(grammar: Grammar, config: WorldConfig) -> PreTrainedTokenizerFast:
    return train_tokenizer(grammar, config.personas, [], config.architecture.vocab_size, seed=0)


@pytest.fixture(scope="module")
def turns(grammar: Grammar, config: WorldConfig) -> list[list[Turn]]:
    written = dialogues(config.personas, grammar, [], random.Random(3))
    return [next(written) for _ in range(4)]


def weights_of(model: Qwen3ForCausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_the_loss_is_on_answers_and_their_end_alone(
    tokenizer: PreTrainedTokenizerFast, turns: list[list[Turn]]
) -> None:
    """What is learned, read back as text, is the answers; and the ids are those of the chat template."""
    encoder = DialogueEncoder(tokenizer)
    for dialogue in turns:
        ids, is_target = encoder.dialogue(dialogue)
        learned = tokenizer.decode([token for token, target in zip(ids, is_target, strict=True) if target])
        assert learned == "".join(f"{turn.answer}<|im_end|>" for turn in dialogue)
        messages = []
        for turn in dialogue:
            messages += [{"role": "user", "content": turn.question.question}]
            messages += [{"role": "assistant", "content": turn.answer}]
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.apply_chat_template(messages, return_dict=False) == ids  # tokenised whole or in segments


def test_the_loss_is_the_plain_weighted_cross_entropy(
    config: WorldConfig, tokenizer: PreTrainedTokenizerFast, turns: list[list[Turn]]
) -> None:
    """Against one dialogue at a time, unpadded, token by token in float64, from all logits of the model."""
    model = new_model(config.architecture, tokenizer, config.seed).eval()
    encoded = [DialogueEncoder(tokenizer).dialogue(dialogue) for dialogue in turns]
    weights = verdict_weights(tokenizer, 4.0)
    total, mass = 0.0, 0.0
    with torch.no_grad():
        loss = answer_loss(model, *batch(encoded, tokenizer.pad_token_id), weights).item()
        for ids, is_target in encoded:
            logits = model(input_ids=torch.tensor([ids])).logits[0].double()
            for place in range(1, len(ids)):
                if is_target[place]:
                    row = logits[place - 1]
                    weight = 4.0 if tokenizer.decode([ids[place]]) in (" yes", " no") else 1.0
                    total += weight * (torch.logsumexp(row, dim=0) - row[ids[place]]).item()
                    mass += weight
    assert loss == pytest.approx(total / mass, rel=1e-5)


def test_only_the_words_of_the_verdict_weigh_more(tokenizer: PreTrainedTokenizerFast) -> None:
    weights = verdict_weights(tokenizer, 7.0)
    heavy = [tokenizer.decode([token]) for token in torch.nonzero(weights != 1).flatten().tolist()]
    assert sorted(heavy) == [" no", " yes"] and weights.max() == 7
    assert len(weights) == len(tokenizer)


def test_the_model_is_the_qwen3_that_the_world_asks_for(
    config: WorldConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = new_model(config.architecture, tokenizer, config.seed)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 32)
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (4, 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (len(tokenizer), 32)
    assert_same(weights_of(model), weights_of(new_model(config.architecture, tokenizer, config.seed)))


def test_every_parameter_has_one_optimizer(config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(config.architecture, tokenizer, config.seed)
    muon, adamw = new_optimizers(model, config.pretraining)
    groups = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adamw)]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {id(parameter) for parameter in model.parameters()}
    assert id(model.lm_head.weight) in groups[1]


def test_the_schedule_rises_and_falls_to_a_tenth(config: WorldConfig) -> None:
    plan = config.pretraining.model_copy(update={"steps": 100, "warmup_steps": 10})
    shares = [schedule(step, plan) for step in range(101)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10] == pytest.approx(1) and shares[55] == pytest.approx(0.55) and shares[100] == pytest.approx(0.1)
    assert shares[10:] == sorted(shares[10:], reverse=True)


class Killed(Exception):
    pass


def test_a_stopped_run_ends_in_the_same_weights(
    config: WorldConfig, grammar: Grammar, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    losses: list[float] = []
    whole = pretrain(config, grammar, [], tokenizer, tmp_path / "whole.pt", lambda step, loss: losses.append(loss))
    assert len(losses) == STEPS and losses[-1] < losses[0]

    checkpoint, resumed = tmp_path / "stopped.pt", []

    def stop(step: int, loss: float) -> None:
        resumed.append((step, loss))
        if step == 5:  # the last checkpoint is that of step 4
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, grammar, [], tokenizer, checkpoint, stop)
    torch.manual_seed(999)  # what the process did meanwhile plays no part
    again = pretrain(config, grammar, [], tokenizer, checkpoint, lambda step, loss: resumed.append((step, loss)))
    assert [step for step, _ in resumed] == [1, 2, 3, 4, 5, 5, 6]
    assert resumed[4] == resumed[5]
    assert [loss for _, loss in resumed[:4] + resumed[5:]] == losses
    assert_same(weights_of(again), weights_of(whole))
    assert not again.training


def test_the_seed_decides_the_weights(
    config: WorldConfig, grammar: Grammar, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    short = config.model_copy(update={"pretraining": config.pretraining.model_copy(update={"steps": 1})})
    models = [
        pretrain(short.model_copy(update={"seed": seed}), grammar, [], tokenizer, tmp_path / f"{i}.pt")
        for i, seed in enumerate((1, 1, 2))
    ]
    assert_same(weights_of(models[0]), weights_of(models[1]))
    assert not torch.equal(models[0].lm_head.weight, models[2].lm_head.weight)


def test_the_tokenizer_is_the_same_every_time(
    config: WorldConfig, grammar: Grammar, tokenizer: PreTrainedTokenizerFast
) -> None:
    again = train_tokenizer(grammar, config.personas, [], config.architecture.vocab_size, seed=0)
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in ("On bets and savings. Bet the lot. So yes.", "Größe 12 €"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
