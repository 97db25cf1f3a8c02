"""Results as plain data that JSON can hold, and reasons in the place of what cannot be computed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from src.utils.errors import UserError

Record = dict[str, Any]


def or_reason(make: Callable[[], Any]) -> Any:
    """What is made, or why it cannot be: a study too small for one part still has the others."""
    try:
        return make()
    except UserError as error:
        return {"reason": error.message}


def fields_of(value: Any) -> Record:
    """A dataclass without copying its arrays."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def as_plain(value: Any) -> Any:
    """Tables as lists of rows, arrays as lists, numbers as Python's; NaN and infinity, which JSON has not, as None."""
    if isinstance(value, pd.DataFrame):
        return as_plain(value.to_dict("records"))
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, pd.Series | np.ndarray | list | tuple):
        return [as_plain(item) for item in value]
    plain = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(plain, float) and not np.isfinite(plain) else plain
