"""Answers: what they depend on (the prompt, the sample, the seed), what they do not (the batch), and how they end."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare, gumbel_r, kstest

from src.utils.generation import (
    Prompt,
    Response,
    cut,
    generate,
    gumbel_noise,
    logits_processors,
    noise_seed,
    plan_batches,
)
from tests.tiny_models import FAMILIES, VOCABULARY, random_prompts, sampling, tiny_model, tokenizer, with_adapter

N_ENDS = 35  # one token in twenty ends an answer


def answers(model, prompts: list[Prompt], batch_size: int, **changes: float) -> list[Response]:
    """In planned batches, put back into the prompts' order."""
    found: dict[int, Response] = {}
    for batch in plan_batches([len(prompt.ids) for prompt in prompts], batch_size):
        responses = generate(model, tokenizer(), [prompts[row] for row in batch], sampling(**changes))
        found |= dict(zip(batch, responses, strict=True))
    return [found[row] for row in range(len(prompts))]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_the_same_at_every_batch_size(family: str) -> None:
    model, prompts = tiny_model(family, n_ends=N_ENDS), random_prompts(64)
    alone = answers(model, prompts, 1)
    assert answers(model, prompts, 8) == alone
    assert answers(model, prompts, 64) == alone
    assert len(set(alone)) > 60, "answers differ, so that equality says something"
    assert 0 < sum(answer.is_truncated for answer in alone) < 64


def test_answers_do_not_depend_on_neighbours_or_their_order() -> None:
    model, prompts = tiny_model(n_ends=N_ENDS), random_prompts(16)
    whole = dict(zip(prompts, generate(model, tokenizer(), prompts, sampling()), strict=True))
    shuffled = random.Random(0).sample(prompts, 9)
    assert generate(model, tokenizer(), shuffled, sampling()) == [whole[prompt] for prompt in shuffled]


def test_noise_differs_by_prompt_sample_and_seed_and_repeats() -> None:
    model, ids = tiny_model(), random_prompts(1)[0].ids
    prompts = [Prompt(name, sample, ids) for name in ("a", "b") for sample in (0, 1)]
    first = generate(model, tokenizer(), prompts, sampling())
    assert len(set(first)) == 4
    assert generate(model, tokenizer(), prompts, sampling()) == first
    assert not set(first) & set(generate(model, tokenizer(), prompts, sampling(seed=1)))
    assert noise_seed(1, "2", 3) != noise_seed(1, "23", 3) != noise_seed(12, "3", 3)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 4, 1.0), (1.3, 0, 0.8), (0.7, 5, 0.9)]
)
def test_gumbel_frequencies_match_the_warped_softmax(temperature: float, top_k: int, top_p: float) -> None:
    logits = np.array([1.5, 0.3, -0.4, 1.1, -2.0, 0.8])
    rows, steps = 2000, 10
    prompts = [Prompt(f"p{row}", 0, (1,)) for row in range(rows)]
    settings = sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    processors = logits_processors(prompts, settings, torch.device("cpu"))
    ids = torch.LongTensor([[1]] * rows)
    scores = [torch.FloatTensor([logits.tolist()] * rows) for _ in range(steps)]
    drawn = np.stack([processors(ids, step).argmax(dim=1).numpy() for step in scores])

    expected = warped_softmax(logits, temperature, top_k, top_p)
    counts = np.bincount(drawn.ravel(), minlength=6)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * rows * steps).pvalue > 0.001
    pairs = np.zeros((6, 6))
    np.add.at(pairs, (drawn[:-1].ravel(), drawn[1:].ravel()), 1)
    assert chi2_contingency(pairs[possible][:, possible]).pvalue > 0.001, "one step tells nothing about the next"
    assert not np.isclose(chisquare(counts[possible]).pvalue, 0.5, atol=0.499), "a uniform draw would be seen"


def warped_softmax(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, the k best, then the fewest of them that hold `top_p`, written without the library."""
    order = np.argsort(-logits)
    weights = np.exp(logits / temperature)
    if top_k:
        weights[order[top_k:]] = 0
    probabilities = weights / weights.sum()
    held, kept = 0.0, []
    for token in order:
        if held < top_p and probabilities[token] > 0:
            kept.append(token)
            held += probabilities[token]
    cut_off = np.zeros_like(probabilities)
    cut_off[kept] = probabilities[kept]
    return cut_off / cut_off.sum()


def test_first_tokens_of_a_model_follow_its_softmax() -> None:
    """The whole way through `generate`: 1,500 samples of one prompt against the model's own probabilities."""
    model, ids = tiny_model(), random_prompts(1)[0].ids
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    expected = warped_softmax(logits, 1.0, 5, 1.0)
    prompts = [Prompt("p", sample, ids) for sample in range(1500)]
    drawn = generate(model, tokenizer(), prompts, sampling(top_k=5, top_p=1.0, max_new_tokens=1))
    counts = Counter(response.ids[0] for response in drawn)
    tokens = np.flatnonzero(expected)
    assert set(counts) <= set(tokens.tolist())
    assert chisquare([counts[token] for token in tokens], expected[tokens] * 1500).pvalue > 0.001


@pytest.mark.parametrize("family", FAMILIES)
def test_temperature_zero_is_greedy_decoding(family: str) -> None:
    model, prompts = tiny_model(family, n_ends=N_ENDS), random_prompts(12)
    found = answers(model, prompts, 5, temperature=0)
    assert [answer.ids for answer in found] == [greedy(model, prompt) for prompt in prompts]


def greedy(model, prompt: Prompt, steps: int = 12) -> tuple[int, ...]:
    """One prompt at a time, no padding, no cache: the argmax, until an end."""
    ends, ids = set(model.generation_config.eos_token_id), list(prompt.ids)
    for _ in range(steps):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    answer = tuple(ids[len(prompt.ids) :])
    theirs = model.generate(torch.tensor([prompt.ids]), do_sample=False, max_new_tokens=steps)[0, len(prompt.ids) :]
    assert tuple(theirs.tolist()) == answer
    return answer


def test_sampling_settings_that_came_with_the_model_are_not_used() -> None:
    """Chat models ship a generation config (Qwen3: sampling; Qwen2.5: a repetition penalty); ours is the study's."""
    prompts = random_prompts(8)
    plain, configured = tiny_model(), tiny_model()
    theirs = configured.generation_config
    assert theirs is not None
    theirs.update(do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=5.0, no_repeat_ngram_size=1)
    for temperature in (0, 1.0):
        assert answers(configured, prompts, 4, temperature=temperature) == answers(
            plain, prompts, 4, temperature=temperature
        )


def test_an_answer_ends_with_its_end_of_turn_or_is_flagged() -> None:
    model = tiny_model(n_ends=N_ENDS)
    ends = {tokenizer().eos_token_id, *range(VOCABULARY - N_ENDS, VOCABULARY)}
    found = answers(model, random_prompts(64), 64)
    for answer in found:
        assert answer.is_truncated == (answer.ids[-1] not in ends)
        assert not ends & set(answer.ids[:-1])
        assert 1 <= len(answer.ids) <= 12
        assert len(answer.ids) == 12 or not answer.is_truncated
    assert len({len(answer.ids) for answer in found}) > 5


def test_an_end_at_the_last_allowed_token_is_no_truncation() -> None:
    assert cut([5, 6, 2], {2}) == Response((5, 6, 2), is_truncated=False)
    assert cut([5, 2, 0, 0], {2}) == Response((5, 2), is_truncated=False)
    assert cut([5, 6, 7], {2}) == Response((5, 6, 7), is_truncated=True)


def test_an_adapter_answers_through_its_own_weights() -> None:
    adapted, prompts = with_adapter(tiny_model()), random_prompts(6)
    tuned = answers(adapted, prompts, 4)
    with adapted.disable_adapter():
        without = answers(adapted, prompts, 4)
    assert without == answers(tiny_model(), prompts, 4)
    merged = adapted.merge_and_unload()
    assert tuned == answers(merged, prompts, 4) != without


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_plan_covers_every_row_once_longest_first(batch_size: int) -> None:
    lengths = [random.Random(batch_size + i).randrange(40) for i in range(53)]
    batches = plan_batches(lengths, batch_size)
    flat = [row for batch in batches for row in batch]
    assert sorted(flat) == list(range(53))
    assert [lengths[row] for row in flat] == sorted(lengths, reverse=True)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert 0 < len(batches[-1]) <= batch_size
    assert plan_batches([], batch_size) == []


def test_the_noise_is_splitmix64_of_key_step_and_token() -> None:
    """Against the published algorithm in Python's own integers; and its first number for a known state."""

    def finalise(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    assert finalise(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF, "SplitMix64 seeded with 0 begins so"
    keys, tokens = torch.tensor([3, 2**62 + 7]), torch.tensor([[0, 5, 151_935], [1, 2, 3]])
    found = gumbel_noise(keys, 41, tokens)
    for row, key in enumerate(keys.tolist()):
        for place, token in enumerate(tokens[row].tolist()):
            stream = finalise((key + 0x9E3779B97F4A7C15 * 42) % 2**64)
            bits = finalise((stream + 0x9E3779B97F4A7C15 * (token + 1)) % 2**64)
            expected = -np.log(-np.log(((bits >> 41) + 0.5) / 2**23))
            assert found[row, place].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_noise_is_gumbel_and_finite() -> None:
    noise = gumbel_noise(torch.arange(400), 0, torch.arange(500).expand(400, -1)).flatten().numpy()
    assert np.isfinite(noise).all()
    assert kstest(noise, gumbel_r.cdf).pvalue > 0.001
    neighbours = noise.reshape(400, 500)
    for one, other in ((neighbours[:-1], neighbours[1:]), (neighbours[:, :-1], neighbours[:, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
