"""Rows that cannot be recorded together are recorded in halves, down to those that cannot be recorded at all.

What a row's fault does to the study is decided in `collection`; flags are set in `collection_frame`.
"""

import gc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from src.utils.collection_parts import ArmPart, join_parts
from src.utils.errors import UserError
from src.utils.generation import Response

NO_ANSWER = Response((), is_truncated=False)
MEMORY_WORDS = ("out of memory", "can't allocate memory")  # CUDA and MPS; PyTorch's allocator on a CPU


def run_rows(record: Callable[[list[int]], ArmPart], rows: list[int], say: Callable[[str], object]) -> ArmPart:
    """Record rows together; where that fails, in halves, down to the rows that cannot be recorded.

    A row that fails alone is in the part's `failures`, under its place among `rows`. `UserError` is raised: it is about
    the whole run.
    """
    part, error = attempt(record, rows)
    if part is not None:
        return part
    assert error is not None
    if len(rows) == 1:
        return ArmPart([NO_ANSWER], {}, np.zeros(1, int), np.ones(1, bool), {0: reason_of(error)})
    middle = (len(rows) + 1) // 2
    if is_out_of_memory(error):
        say(f"out of memory with {len(rows)} rows; going on with {middle}")
    joined = join_parts([run_rows(record, half, say) for half in (rows[:middle], rows[middle:])])
    return replace(joined, is_split=np.ones_like(joined.is_split))


def attempt(record: Callable[[list[int]], ArmPart], rows: list[int]) -> tuple[ArmPart | None, Exception | None]:
    """The part, or the error with what it held in memory released."""
    try:
        return record(rows), None
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with a row, the others go on
        failure = error.with_traceback(None)
    if is_out_of_memory(failure):
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return None, failure


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; on a CPU that is a plain `RuntimeError`, or a `MemoryError` without a text."""
    has_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return has_type or (isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_WORDS))


def reason_of(error: Exception) -> str:
    """One line for the flagged row; the kind of error with what says little without it, such as a `KeyError`."""
    if is_out_of_memory(error):
        return "out of memory"
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:200]
