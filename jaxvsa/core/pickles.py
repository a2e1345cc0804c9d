"""Pickles read without running their code.

A pickle can call anything it can import. These readers let it name only what the caller lists;
any other name is refused before it is looked up, and nothing is imported for the file.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError

Names = Mapping[tuple[str, str], Any]


class Named:
    """What a file gets for an allowed name: it may be callable, but cannot be changed.

    Attributes:
        target: what the name stands for here.
    """

    __slots__ = ("target",)

    def __init__(self, target: Any) -> None:
        self.target = target

    def __call__(self, *args: Any) -> Any:
        """The result of the function, if it is one.

        Raises:
            UserError: the name stands for something else.
        """
        if not callable(self.target):
            raise UserError("the pickle calls something that is no function")
        return self.target(*args)

    def __setstate__(self, state: Any) -> None:
        """Refuses.

        Raises:
            UserError: always.
        """
        raise UserError("the pickle sets attributes of a function")


class SafeUnpickler(pickle.Unpickler):
    """Unpickler that resolves names from a table and from nowhere else.

    Args:
        pickled: the bytes.
        allowed: (module, name) as the file writes them -> what takes their place.
        rule: what is read and what to do with other files, for the error text.
        encoding: of the byte strings in pickles of Python 2.
    """

    def __init__(
        self, pickled: bytes, allowed: Names, rule: str, *, encoding: str = "ASCII"
    ) -> None:
        super().__init__(io.BytesIO(pickled), encoding=encoding)
        self._allowed = allowed
        self._rule = rule

    def find_class(self, module: str, name: str) -> Named:
        """The entry of the table.

        Raises:
            UserError: there is none.
        """
        if (module, name) not in self._allowed:
            raise UserError(f"the pickle names '{module}.{name}', which is not read: {self._rule}")
        return Named(self._allowed[module, name])


def read_pickle(path: str | Path, *, arrays: bool = False, encoding: str = "utf-8") -> Any:
    """Content of a pickle of plain containers, text and numbers.

    Args:
        path: the file.
        arrays: numpy arrays of numbers are read too, each as a `StoredArray`.
        encoding: of the byte strings in pickles of Python 2; "latin1" if there are arrays.

    Raises:
        UserError: the file is missing, damaged, or names anything else than numpy's arrays.
    """
    kinds = "plain containers, text, numbers" + (" and numpy's arrays" if arrays else "")
    rule = f"only {kinds} are; where you trust the file, load it and save it again as those"
    try:
        pickled = Path(path).read_bytes()
        return SafeUnpickler(pickled, _NUMPY if arrays else {}, rule, encoding=encoding).load()
    except OSError as error:
        raise UserError(
            f"{path}: cannot read it ({error.strerror}); put the file of the release there"
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way; all of them mean the same
        raise UserError(
            f"{path}: no whole pickle ({type(error).__name__}); download it again"
        ) from error


class StoredArray:
    """A numpy array as its pickle describes it.

    Attributes:
        values: the array, read-only; empty if the file gives it no content.
    """

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        """(version, shape, type, Fortran order, bytes), as `numpy.ndarray.__reduce__` writes it.

        Raises:
            UserError: the type is not one of numbers.
            ValueError: the bytes do not fill the shape.
        """
        _, shape, dtype, fortran, stored = state
        if not isinstance(dtype, _StoredType):
            raise UserError("an array without a type of numbers; save it again as a plain list")
        # Python 2 has one type for text and bytes, which latin1 keeps value by value.
        buffer = stored.encode("latin1") if isinstance(stored, str) else stored
        values = np.frombuffer(buffer, dtype.numpy())
        self.values = values.reshape(shape, order="F" if fortran else "C")


class _StoredType:
    """A numpy type as its pickle describes it; no type of this process can be changed with it."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch("b1|[iu][1248]|f[248]", code):
            raise UserError(f"an array of type {code!r}, not of numbers; save it again as a list")
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, ...), as `numpy.dtype.__reduce__` writes it."""
        self.order = state[1]

    def numpy(self) -> np.dtype:
        """The type; byte orders other than `<`, `>`, `|` fail in numpy."""
        return np.dtype(f"{self.order}{self.code}")


def _reconstruct(kind: Named, *_: Any) -> StoredArray:
    """An array without content: numpy's pickles fill it afterwards."""
    return kind()


_NUMPY: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): _StoredType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # numpy 2
}
