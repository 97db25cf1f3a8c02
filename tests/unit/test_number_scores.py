"""The probability of a reply, over all its tokens, against passes over each reply by itself."""

from typing import Any

import pytest
import torch

from src.utils.chat import prompt_ids
from src.utils.errors import UserError
from src.utils.judging.number_scores import (
    check_architecture,
    continuing_tokens,
    plain_probability,
    reply_probabilities,
    token_tree,
)
from tests.tiny_models import FAMILIES, questions, tiny_model, tokenizer

INTEGERS = [str(number) for number in range(101)]


def prompts(count: int) -> list[list[int]]:
    return [prompt_ids(tokenizer(), question.question) for question in questions(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_integer_has_the_probability_of_a_pass_of_its_own(family: str) -> None:
    """Prompts of different lengths in one batch, left padded; every integer by itself, unpadded and without a cache."""
    model, asked = tiny_model(family).eval(), prompts(4)
    assert len({len(prompt) for prompt in asked}) > 1
    found = reply_probabilities(model, tokenizer(), asked, INTEGERS)
    for row, prompt in zip(found, asked, strict=True):
        alone = [plain_probability(model, tokenizer(), prompt, reply) for reply in INTEGERS]
        torch.testing.assert_close(row, torch.tensor(alone, dtype=torch.float64), rtol=1e-4, atol=1e-12)


def test_numbers_are_paths_of_digits() -> None:
    """The reply "8" must not have the probability of all that begins with it: paths share it out."""
    encoded = tokenizer().encode("100", add_special_tokens=False)
    assert len(encoded) == 3, "a tokenizer that splits numbers, as Qwen's does"
    found = reply_probabilities(tiny_model().eval(), tokenizer(), prompts(2), INTEGERS)
    assert (found > 0).all() and (found.sum(dim=1) < 1).all()
    with torch.inference_mode():
        logits = tiny_model().eval()(torch.tensor([prompts(1)[0]])).logits[0, -1]
    first = tokenizer().encode("8", add_special_tokens=False)[0]
    begins = logits.float().softmax(-1)[first].item()
    with_8 = found[0, [8, *range(80, 90)]].sum().item()
    assert with_8 < begins and found[0, 8].item() < with_8


def test_a_tree_shares_beginnings() -> None:
    tree = token_tree([[1], [1, 2], [1, 2, 3], [4, 2]])
    assert tree.tokens == (1, 2, 3, 4, 2) and tree.parents == (-1, 0, 1, -1, 3) and tree.depths == (0, 1, 2, 0, 1)
    assert tree.ends == (0, 1, 2, 4)
    assert tree.sees()[2].tolist() == [True, True, True, False, False]
    assert tree.sees()[4].tolist() == [False, False, False, True, True]


def test_a_number_ends_at_what_is_no_letter_or_digit() -> None:
    continues = continuing_tokens(tokenizer(), 900)  # a model's vocabulary may be longer than its tokenizer's
    (digit,) = tokenizer().encode("7", add_special_tokens=False)
    (stop,) = tokenizer().encode(".", add_special_tokens=False)
    assert continues[digit] and not continues[stop] and not continues[tokenizer().eos_token_id]
    assert not continues[len(tokenizer()) :].any()


def test_a_model_whose_attention_ignores_the_tree_is_refused() -> None:
    """A second pass that loses the prompt stands for any attention that does not take the mask as it is."""
    model, replies = tiny_model().eval(), ["0", "57", "100"]
    check_architecture(model, tokenizer(), prompts(1)[0], replies)
    plain = model.forward

    def deaf(**inputs: Any) -> Any:
        return plain(input_ids=inputs["input_ids"]) if inputs.get("past_key_values") else plain(**inputs)

    model.forward = deaf
    with pytest.raises(UserError, match="does not take a tree of replies"):
        check_architecture(model, tokenizer(), prompts(1)[0], replies)
