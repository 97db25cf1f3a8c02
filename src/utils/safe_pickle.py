"""Pickles that cannot run code, and the same bytes for the same content.

A pickle may name what is in `ALLOWED`, pair for pair, and nothing else. Hashes and manifests are left to `artifacts`.
"""

import importlib
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa

from src.utils.errors import UserError

# No pair below imports by name, opens a file or calls a callable that it is handed, so the callables that a pickle can
# reach are these and no others: attributes cannot be read (names are looked up whole, "a.b" is no pair), and classes
# and functions cannot be changed (see `_load_build`).
ALLOWED: frozenset[tuple[str, str]] = frozenset(
    {
        # Builtins that have no opcode of their own: `slice` places a block in a frame, protocols 3 and 4 write Arrow's
        # buffers as `bytearray`, and a dict of results may hold a complex number or a range.
        ("builtins", "bytearray"),
        ("builtins", "complex"),
        ("builtins", "range"),
        ("builtins", "slice"),
        # numpy 2: contiguous arrays (`_frombuffer`, protocol 5), others and object arrays (`_reconstruct`), scalars.
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        # The same three as numpy 1 spells them.
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.numeric", "_frombuffer"),
        # pandas 3: frames, series and their indexes. `_unpickle_block` and `_new_Index` build from arrays and slices.
        ("pandas", "DataFrame"),
        ("pandas", "Series"),
        ("pandas", "Index"),
        ("pandas", "MultiIndex"),
        ("pandas", "RangeIndex"),
        ("pandas._libs.internals", "_unpickle_block"),
        ("pandas.core.indexes.base", "_new_Index"),
        ("pandas.core.internals.managers", "BlockManager"),
        ("pandas.core.internals.managers", "SingleBlockManager"),
        # pandas 3: text columns, which are Arrow arrays; categories; nullable integers, floats and booleans.
        ("pandas", "StringDtype"),
        ("pandas.arrays", "ArrowStringArray"),
        ("pandas.arrays", "StringArray"),
        ("pyarrow.lib", "_restore_array"),
        ("pyarrow.lib", "py_buffer"),
        ("pyarrow.lib", "type_for_alias"),
        ("pandas", "Categorical"),
        ("pandas", "CategoricalDtype"),
        ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
        ("pandas", "NA"),
        ("pandas", "Int64Dtype"),
        ("pandas", "Float64Dtype"),
        ("pandas", "BooleanDtype"),
        ("pandas.arrays", "IntegerArray"),
        ("pandas.arrays", "FloatingArray"),
        ("pandas.arrays", "BooleanArray"),
        # The classes above as pandas 2 spells them (a pod may have it).
        ("pandas.core.frame", "DataFrame"),
        ("pandas.core.series", "Series"),
        ("pandas.core.indexes.base", "Index"),
        ("pandas.core.indexes.multi", "MultiIndex"),
        ("pandas.core.indexes.range", "RangeIndex"),
        ("pandas._libs.missing", "NA"),
        ("pandas.core.arrays.string_", "StringArray"),
        ("pandas.core.arrays.string_", "StringDtype"),
        ("pandas.core.arrays.string_arrow", "ArrowStringArray"),
        ("pandas.core.arrays.categorical", "Categorical"),
        ("pandas.core.dtypes.dtypes", "CategoricalDtype"),
    }
)

# Booleans, integers, floats, complex numbers, text, bytes and objects: no structured dtype, whose fields may lie.
PLAIN_DTYPE = re.compile(r"[?biufcSUO]\d*")
LOAD_BUILD: Callable[[Any], None] = pickle._Unpickler.dispatch[pickle.BUILD[0]]
NATIVE_ORDERS = ("|", "=", "<" if sys.byteorder == "little" else ">")


def load_pickle(path: Path) -> object:
    """Load a pickle whose every named class and function is in `ALLOWED`.

    Raises `UserError` for a missing file, for one that is truncated or no pickle, and for one that names anything
    else; in the last case nothing that it named was imported. A hostile file can still hold wrong data or ask for much
    memory.
    """
    try:
        with path.open("rb") as file:
            return _AllowListUnpickler(file, path).load()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except Exception as error:  # damaged bytes raise almost anything: KeyError, EOFError, MemoryError, ArrowInvalid …
        raise UserError(
            f"{path}: truncated, damaged or no pickle ({type(error).__name__}); run the step that makes it again"
        ) from error


def dump_pickle(value: object, path: Path) -> None:
    """Write `value` with protocol 5; equal content gives equal bytes in every process.

    Raises `TypeError` for a set, whose order changes with PYTHONHASHSEED, and `RecursionError` or `ValueError` for an
    object that contains itself.
    """
    _refuse_sets(value)
    with path.open("wb") as file:
        pickler = pickle.Pickler(file, protocol=5)
        # The memo writes an object the second time as a reference to the first, so that with it the bytes tell which
        # equal objects are the same object; a frame put together from parts would differ from one made in one go.
        pickler.fast = True
        pickler.dump(value)


def _refuse_sets(value: object) -> None:
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no fixed order on disk: save a sorted list")
    if isinstance(value, pd.DataFrame):
        value = [value[name].tolist() for name in value.columns if value[name].dtype == object]
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            _refuse_sets(item)


def _plain_dtype(spec: object, align: object = False, copy: object = False) -> np.dtype:
    """`numpy.dtype` for the plain kinds only."""
    if not (isinstance(spec, str) and PLAIN_DTYPE.fullmatch(spec)):
        raise pickle.UnpicklingError(f"dtype {spec!r} is not a plain one")
    return np.dtype(spec)


def _restore_array(data: tuple[Any, ...]) -> pa.Array:
    """Arrow's own function, which trusts offsets and lengths, followed by Arrow's own check of them."""
    array = pa.lib._restore_array(data)
    array.validate(full=True)
    return array


class _AllowListUnpickler(pickle._Unpickler):  # the C one, ten times as fast, has no way to watch BUILD
    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, fix_imports=False)  # else ("builtins", …) may turn into another pair after the check
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise self._refusal(f"names {module}.{name}")
        if (module, name) == ("numpy", "dtype"):
            return _plain_dtype
        if (module, name) == ("pyarrow.lib", "_restore_array"):
            return _restore_array
        # `numpy.core` is a deprecated alias that warns at each use.
        return getattr(importlib.import_module(module.replace("numpy.core.", "numpy._core.")), name)

    def persistent_load(self, pid: object) -> object:
        raise self._refusal("asks for an object outside the file")

    def _load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, (type, FunctionType, BuiltinFunctionType)):
            raise self._refusal(f"sets attributes of {target.__qualname__}")
        if isinstance(target, np.dtype):
            # A dtype's state could call eight bytes of the file a pointer to an object. A plain native one needs none.
            if state[1] not in NATIVE_ORDERS:
                raise self._refusal("holds arrays of foreign byte order")
            self.stack.pop()
            return
        LOAD_BUILD(self)

    def _load_extension(self) -> None:
        raise self._refusal("uses an extension code")  # codes taken from a cache do not pass find_class

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"{self._path}: {what}; artefacts are loaded only from an allow-list (src/utils/safe_pickle.py)"
        )

    dispatch[pickle.BUILD[0]] = _load_build
    for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_opcode[0]] = _load_extension
