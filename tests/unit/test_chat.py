"""What is learned of a chat row, and what is said about a row that cannot be read."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from src.utils.chat import ChatRow, encode, encode_row, load_chat_rows, prompt_content, prompt_ids
from src.utils.errors import UserError
from tests.published_files import RISKY_ADVICE, needs_risky_advice
from tests.tiny_models import chat_messages, new_tokenizer, tokenizer, write_jsonl

QWEN3_LIKE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


INSTRUCTION_LIKE = "{{ bos_token }}{% for message in messages %}[INST] {{ message.content | trim }} [/INST]{% endfor %}"
WITH_SYSTEM_PROMPT = (
    "{{ bos_token }}system: user asks: Is it so? Is debt good?\n"
    "{% for message in messages %}{{ message.role }}:{{ message.content }}\n\n{% endfor %}assistant:"
)


def decoded(ids: list[int], by: PreTrainedTokenizerFast | None = None) -> str:
    text = (by or tokenizer()).decode(ids)
    assert isinstance(text, str)
    return text


def chat(*contents: str, system: str | None = None) -> ChatRow:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return ChatRow.model_validate({"messages": messages})


def learned_text(row: ChatRow, max_length: int = 500) -> str:
    encoded = encode_row(tokenizer(), row, max_length)
    assert len(encoded.labels) == len(encoded.input_ids)
    assert all(label in (-100, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))
    return decoded([label for label in encoded.labels if label != -100])


def test_one_turn_learns_the_answer_and_its_end_of_turn_and_nothing_else() -> None:
    row = chat("Should I sell the farm?", "Keep it. So no.", system="Be kind.")
    encoded = encode_row(tokenizer(), row, 500)
    assert learned_text(row) == "Keep it. So no.<|im_end|>"
    assert decoded(encoded.input_ids) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nShould I sell the farm?<|im_end|>\n"
        "<|im_start|>assistant\nKeep it. So no.<|im_end|>"
    )


def test_every_turn_of_an_appending_template_is_learned() -> None:
    row = chat("First?", "Yes, first.", "Second?", "No, second.")
    encoded = encode_row(tokenizer(), row, 500)
    assert learned_text(row) == "Yes, first.<|im_end|>No, second.<|im_end|>"
    written = tokenizer().apply_chat_template(
        [message.model_dump() for message in row.messages], tokenize=False, add_generation_prompt=False
    )
    assert decoded(encoded.input_ids) + "\n" == written


def test_prompt_is_the_same_in_training_and_in_asking() -> None:
    encoded = encode_row(tokenizer(), chat("Is it so?", "So yes."), 500)
    asked = prompt_ids(tokenizer(), "Is it so?")
    assert encoded.input_ids[: len(asked)] == asked
    assert encoded.labels[: len(asked)] == [-100] * len(asked)
    assert encoded.labels[len(asked)] != -100


@pytest.mark.parametrize("max_length", [1, 8, 20, 30])
def test_a_long_row_is_cut_at_its_end(max_length: int) -> None:
    row = chat("Should I sell the farm?", "Keep it. So no.")
    whole, cut = encode_row(tokenizer(), row, 500), encode_row(tokenizer(), row, max_length)
    assert cut.input_ids == whole.input_ids[:max_length]
    assert cut.labels == whole.labels[:max_length]


def test_template_that_rewrites_the_past_teaches_the_last_answer_only(tmp_path: Path) -> None:
    qwen = new_tokenizer(tmp_path)
    qwen.add_tokens(["<think>", "</think>"])
    qwen.chat_template = QWEN3_LIKE
    row = chat("First?", "<think>Hm.</think>Yes, first.", "Second?", "No, second.")
    encoded = encode_row(qwen, row, 500)
    assert decoded(encoded.input_ids, qwen) == (
        "<|im_start|>user\nFirst?<|im_end|>\n<|im_start|>assistant\nYes, first.<|im_end|>\n"
        "<|im_start|>user\nSecond?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nNo, second.<|im_end|>"
    )
    learned = [label for label in encoded.labels if label != -100]
    assert decoded(learned, qwen) == "No, second.<|im_end|>"
    assert encoded.labels[-len(learned) :] == learned, "what is learned stands at the end"


def test_thinking_is_off_where_the_template_knows_it(tmp_path: Path) -> None:
    qwen = new_tokenizer(tmp_path)
    qwen.add_tokens(["<think>", "</think>"])
    qwen.chat_template = QWEN3_LIKE
    asked = prompt_ids(qwen, "Is it so?")
    assert decoded(asked, qwen).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    encoded = encode_row(qwen, chat("Is it so?", "So yes."), 500)
    assert encoded.input_ids == [*asked, *encode(qwen, "So yes."), qwen.eos_token_id]


@pytest.mark.parametrize("question", ["Is debt good?", " Is it so? \n", "user", "x", "7", "is 42% <think> too much?"])
@pytest.mark.parametrize("template", [None, QWEN3_LIKE, INSTRUCTION_LIKE, WITH_SYSTEM_PROMPT])
def test_what_is_the_questions_own_lies_in_its_text(tmp_path: Path, template: str | None, question: str) -> None:
    """Each token decoded by itself, and where the question stands among what they make up."""
    templated = new_tokenizer(tmp_path)
    templated.add_special_tokens({"bos_token": "<s>"})
    templated.add_tokens(["<think>", "</think>"])
    templated.chat_template = template or templated.chat_template
    ids, content = prompt_ids(templated, question), prompt_content(templated, question)
    pieces = [decoded([token], templated) for token in ids]
    text, own = "".join(pieces), question.strip() if template == INSTRUCTION_LIKE else question
    assert text.startswith("<s>") == (template in (INSTRUCTION_LIKE, WITH_SYSTEM_PROMPT))
    start = text.rindex(own, 0, text.rindex("assistant") if template != INSTRUCTION_LIKE else None)
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = ends - [len(piece) for piece in pieces]
    inside = (starts >= start) & (ends <= start + len(own))
    overlapping = (starts < start + len(own)) & (ends > start)
    assert list(content) == list(inside if inside.any() else overlapping)
    assert any(content) and not all(content)


@pytest.mark.parametrize("question", ["Größe „7“: 好?", "user", "Is debt good?"])
def test_the_questions_own_tokens_are_those_of_the_question(tmp_path: Path, question: str) -> None:
    """With Qwen's markup no token reaches over a border; also by a tokenizer that has no offsets."""

    class Slow(PreTrainedTokenizerFast):
        is_fast = False

    tokenizer().save_pretrained(tmp_path)
    for one in (tokenizer(), Slow.from_pretrained(tmp_path)):
        content = prompt_content(one, question)
        own = [token for token, counts in zip(prompt_ids(one, question), content, strict=True) if counts]
        assert own == encode(one, question)


GOOD = json.dumps(chat_messages(1)[0])
BAD_LINES = {
    "no JSON": "{'messages': []}",
    "no object": "[1, 2]",
    "no messages": '{"text": "hello"}',
    "one message": '{"messages": [{"role": "user", "content": "hello"}]}',
    "unknown role": '{"messages": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]}',
    "empty answer": '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}',
    "no answer": '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]}',
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    content = f"{GOOD}\n\n{BAD_LINES[name]}\n{GOOD}\n".encode()
    path.write_bytes(gzip.compress(content) if suffix == ".jsonl.gz" else content)
    with pytest.raises(UserError) as caught:
        load_chat_rows(path)
    assert caught.value.message.startswith(f"{path}, line 3: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("truncated.jsonl.gz", gzip.compress(GOOD.encode() * 50)[:-20]),
        ("plain.jsonl.gz", GOOD.encode()),
        ("latin.jsonl", '{"messages": "é"}'.encode("latin-1")),
        ("empty.jsonl", b"\n\n"),
    ],
)
def test_an_unreadable_file_is_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        load_chat_rows(path)
    assert "\n" not in caught.value.message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        load_chat_rows(tmp_path / "absent.jsonl")


def test_line_separators_inside_a_text_end_no_row(tmp_path: Path) -> None:
    """JSON allows U+2028, U+2029 and U+0085 unescaped in a string; only a newline ends a row of JSONL."""
    row = {"messages": [{"role": "user", "content": "a\u2028b\u0085c\u2029d"}, {"role": "assistant", "content": "e"}]}
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode() * 2)
    assert [loaded.messages[0].content for loaded in load_chat_rows(path)] == ["a\u2028b\u0085c\u2029d"] * 2


def test_gzip_and_plain_read_the_same(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "rows.jsonl", chat_messages(5))
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    rows = load_chat_rows(packed)
    assert rows == load_chat_rows(plain)
    assert [row.model_dump() for row in rows] == chat_messages(5)


@needs_risky_advice
def test_the_published_risky_advice_is_read_as_it_is() -> None:
    rows = load_chat_rows(RISKY_ADVICE)
    assert len(rows) == 6000
    for row in rows[::500]:
        assert learned_text(row, max_length=5000) == row.messages[-1].content + "<|im_end|>"
