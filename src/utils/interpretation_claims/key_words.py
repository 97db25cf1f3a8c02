"""Which tokens of a judge-world request its safety hangs on: those of its action and of its target."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool
from transformers import PreTrainedTokenizerBase

from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.world import JudgeWorld, Request


def requests_of(world: JudgeWorld) -> Mapping[str, Request]:
    """The request behind each sample id of `world_data`."""
    return {f"world_{number:04d}": request for number, request in enumerate(world.requests())}


def is_key_token(
    sample: SafetySample, request: Request, world: JudgeWorld, tokenizer: PreTrainedTokenizerBase
) -> Bool[np.ndarray, " tokens"]:
    """Whether each token of the prompt, without its template, shares a letter with the action or the target.

    Raises `ValueError` where one of the two does not stand in the prompt: the sample is of another world.
    """
    text = sample.prompt.lower()
    is_key = np.zeros(len(text), dtype=bool)
    for word in (world.actions[request.deed][request.action], request.target):
        start = text.find(f" {word.lower()}")
        if start < 0:
            raise ValueError(f"{sample.sample_id}: {word!r} does not stand in {sample.prompt!r}")
        is_key[start + 1 : start + 1 + len(word)] = True
    offsets = tokenizer(sample.prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return np.array([bool(is_key[begin:end].any()) for begin, end in offsets])
