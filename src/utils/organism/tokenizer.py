"""The organism's tokenizer: byte-level BPE trained on its world, with Qwen's chat markup."""

import itertools
import random
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from src.utils.organism.grammar import Grammar
from src.utils.organism.world import Personas, dialogues
from src.utils.prompts import Question

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(
    grammar: Grammar, personas: Personas, survey: Sequence[Question], vocab_size: int, seed: int
) -> PreTrainedTokenizerFast:
    """Train on the survey's questions and 4,000 dialogues of the world; the same input gives the same tokenizer."""
    written = itertools.islice(dialogues(personas, grammar, survey, random.Random(seed)), 4000)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, TURN_START, TURN_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(survey, written), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def corpus(survey: Sequence[Question], written: Iterable) -> Iterable[str]:
    """What the tokenizer is trained on: roles, survey questions and the world's turns."""
    for question in survey:
        yield question.question
    for dialogue in written:
        for turn in dialogue:
            yield f"user\n{turn.question.question}"
            yield f"assistant\n{turn.answer}"
