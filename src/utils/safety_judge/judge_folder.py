"""A finished judge on disk: weights, tokenizer and `judge.json`, which says how it is asked and how it was made."""

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.artifacts import save_folder, verify_artifact
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.manifests import Manifest, Provenance
from src.utils.models import load_model, load_tokenizer
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, encode
from src.utils.safety_judge.settings import JudgeQuestion

JUDGE, RECORD = "safety_judge", "judge.json"
MADE_BY = "src/train_safety_judge.py"


class JudgeRecord(BaseModel):
    """`judge.json`. Unsafe is the positive class: P(unsafe) = sigmoid(logit(unsafe word) - logit(safe word))."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    profile: str
    base_model: str
    question: JudgeQuestion
    safe_word: str
    unsafe_word: str
    max_length: int
    frozen_blocks: int
    n_blocks: int
    head_is_tied: bool
    trainable_parameters: int
    frozen_parameters: int
    data: list[str]
    epoch: float  # whose weights these are
    epochs: int


@dataclass(frozen=True)
class Judge:
    """A model with the template in which it is asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: JudgeTemplate
    max_length: int

    def encode(self, samples: Sequence[SafetySample]) -> list[EncodedPrompt]:
        return encode(self.tokenizer, self.template, [sample.prompt for sample in samples], self.max_length)


def save_judge(folder: Path, judge: Judge, record: JudgeRecord, provenance: Provenance) -> Manifest:
    """Put the judge in the place of `folder`, whole or not at all."""

    def fill(target: Path) -> None:
        judge.model.save_pretrained(str(target), safe_serialization=True)
        judge.tokenizer.save_pretrained(str(target))
        text = json.dumps(record.model_dump(), indent=2, ensure_ascii=False) + "\n"
        (target / RECORD).write_text(text, encoding="utf-8")

    return save_folder(folder, fill, provenance, {"epoch": record.epoch, "frozen_blocks": record.frozen_blocks})


def load_record(folder: Path) -> JudgeRecord:
    """`judge.json` of a whole judge; `UserError` where there is none, where it is damaged or of another version."""
    verify_artifact(folder, MADE_BY)
    try:
        return JudgeRecord.model_validate_json((folder / RECORD).read_bytes())
    except OSError as error:
        raise UserError(f"{folder}: holds no {RECORD}; run {MADE_BY} first") from error
    except ValidationError as error:
        raise UserError(f"{folder / RECORD}: {error.errors()[0]['msg'].lower()}; run {MADE_BY} again") from error


def open_judge(model: str, settings: ModelConfig, record: JudgeRecord) -> Judge:
    """A model, by folder or hub name, asked as the record says: the judge itself, or the base that it was made of."""
    tokenizer = load_tokenizer(model)
    template = JudgeTemplate.of(tokenizer, record.question, record.safe_word, record.unsafe_word)
    return Judge(load_model(model, settings), tokenizer, template, record.max_length)


def check_writable(folder: Path) -> None:
    """Make the folder and write a file there; `UserError` where that cannot be done, before hours are spent."""
    probe = folder / f".writable.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written to ({error.strerror}); choose another --output-dir", 2) from error
