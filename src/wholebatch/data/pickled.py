"""Pickles of plain values and arrays, read without running anything that they say.

A pickle is a program. This reader knows the instructions that put numbers, texts, lists and dicts together, and three
names: numpy's ``ndarray``, ``dtype`` and the function that makes an empty array. For these it has stand-ins that only
take notes; arrays are made afterwards, of notes that fit together. Any other name or instruction is an error, those of
arrays in protocol 5 among them. (The standard reader in C is no base for this: it clears as much memory as a damaged
pickle asks for.)
"""

from __future__ import annotations

import io
import pickle
import re
from typing import Any, ClassVar

import numpy as np

from wholebatch.core.errors import DataError

_INSTRUCTIONS = (
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1"),
    *("BININT2", "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES"),
    *("SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND"),
    *("APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "MEMOIZE"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
)
_NUMBER = re.compile(r"[|<>=]?([biuf])([1248])")


def read_pickle(content: bytes, name: str) -> Any:
    """Return the value of a pickle (of Python 2 or 3) of numbers, texts, bytes, lists, tuples, dicts and arrays.

    Texts of Python 2 are bytes.

    Args:
        content: the pickle.
        name: what an error calls it.

    Raises:
        DataError: it is none, is damaged, or holds anything else.

    >>> import numpy as np
    >>> read_pickle(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}, protocol=4), "an example")
    {'data': array([0, 1, 2], dtype=uint8)}
    """
    try:
        return _plain(_Reader(io.BytesIO(content), encoding="bytes").load())
    except Exception as error:
        raise DataError(
            f"{name} is no pickle of plain values and arrays, or is damaged ({type(error).__name__}: {error})"
        ) from error


class _Type:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, text: Any, *flags: Any) -> None:
        text = text.decode("ascii") if isinstance(text, bytes) else text
        if not isinstance(text, str) or not _NUMBER.fullmatch(text):
            raise ValueError(f"an array of {text!r:.20}")
        self.text, self.order = text.lstrip("|<>="), "<"

    def note(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r:.20}")
        self.order = ">" if order == ">" else "<"


class _Array:
    """Stands in for ``numpy.ndarray``: what a pickle says about one."""

    def __init__(self) -> None:
        self.state: Any = None

    def note(self, state: Any) -> None:
        self.state = state

    def made(self) -> np.ndarray:
        _, shape, kind, by_columns, content = self.state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array that is none of numbers")
        array = np.frombuffer(content, np.dtype(kind.order + kind.text)).reshape(
            shape, order="F" if by_columns else "C"
        )
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


class _ArrayName:
    """Stands in for the class ``numpy.ndarray`` as an argument."""


def _reconstruct(kind: Any, shape: Any, letter: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ArrayName,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        if (module, name) not in _NAMES:
            raise ValueError(f"it names {module}.{name}")
        return _NAMES[module, name]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()  # type: ignore[attr-defined]
        function = self.stack[-1]  # type: ignore[attr-defined]
        if function not in (_reconstruct, _Type, _encode):
            raise ValueError("it calls what cannot be called")
        self.stack[-1] = function(*arguments)  # type: ignore[attr-defined]

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(self.stack[-1], _Type | _Array):  # type: ignore[attr-defined]
            raise ValueError("it changes what cannot be changed")
        self.stack[-1].note(state)  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Any]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS},
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
    }


def _plain(value: Any) -> Any:
    """``value`` with its arrays made; anything that is left of the stand-ins is an error, and so are endless lists."""
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if all(type(item) in (int, bytes, str) for item in value):
            return value
        return type(value)(_plain(item) for item in value)
    if isinstance(value, _Array):
        return value.made()
    if value is not None and not isinstance(value, int | float | str | bytes):
        raise ValueError(f"it holds a {type(value).__name__.strip('_')}")
    return value


def _key(key: Any) -> Any:
    return key.decode("latin1") if isinstance(key, bytes) else key
