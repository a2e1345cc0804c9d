"""Files that are either complete or absent: JSON, JSON lines, folders.

JSON is UTF-8 and not escaped. Non-finite numbers are written as Python does (`NaN`, `Infinity`),
so that a value read back is the value written.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxvsa.core.errors import UserError


def read_json(path: str | Path, what: str) -> Any:
    """Content of a JSON file.

    Args:
        path: the file.
        what: what the file is, for the error text ("the label map").

    Raises:
        UserError: the file is missing, unreadable or no JSON.
    """
    with _file_errors(f"cannot read {what}", path):
        raw = Path(path).read_bytes()
    try:
        return json.loads(raw)
    except ValueError as error:
        raise UserError(f"{what} {path} is not valid JSON: {error}") from error


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as indented JSON, atomically; numpy values and paths become plain ones."""
    write_atomic(path, json.dumps(obj, indent=2, ensure_ascii=False, default=_plain) + "\n")


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes a file so that a reader, or a crash, sees the old content or the new one.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed.

    Raises:
        UserError: the file cannot be written (no space left, no permission); `path` is unchanged.
    """
    path = Path(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with _file_errors("cannot write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with staged.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise


def append_jsonl(path: str | Path, row: dict[str, Any]) -> None:
    """Appends one row as one line; cut a file that an interrupted process left with `cut_jsonl`.

    Raises:
        UserError: the file cannot be written.
    """
    line = json.dumps(row, ensure_ascii=False, default=_plain) + "\n"
    with _file_errors("cannot write", path), Path(path).open("ab") as file:
        file.write(line.encode())


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a half-written last line is ignored.

    Raises:
        UserError: the file is missing, or a complete line is no JSON object (its number is named).
    """
    return [row for _, row in _rows(Path(path))]


def cut_jsonl(path: str | Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Keeps the rows for which `keep` is true, byte for byte, atomically; no file is no rows.

    Raises:
        UserError: as `read_jsonl` and `write_atomic`; the file is unchanged.
    """
    path = Path(path)
    if path.exists():
        write_atomic(path, b"".join(line + b"\n" for line, row in _rows(path) if keep(row)))


@contextlib.contextmanager
def staged_folder(path: str | Path) -> Iterator[Path]:
    """Folder that appears under its name only when the block has ended without an error.

    Args:
        path: where the folder shall be; its parents are made.

    Yields:
        A hidden folder beside `path`, renamed at the end, removed on an error or interrupt.

    Raises:
        UserError: `path` is a file or a folder with something in it, or cannot be written.
    """
    path = Path(path)
    check_free(path)
    staged = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _file_errors("cannot write", path):
        staged.mkdir(parents=True)
    try:
        yield staged
        with _file_errors("cannot write", path):
            os.replace(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def check_free(path: str | Path) -> None:
    """Refuses a file, or a folder with something in it.

    Raises:
        UserError: `path` is one.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} already exists: choose another --out or delete it")


def digest_bytes(*chunks: bytes | memoryview) -> str:
    """Hex digest (BLAKE2b, 16 bytes) of the concatenated chunks."""
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a file, with and without decoding."""
    with _file_errors("cannot read", path):
        *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        yield line, row


@contextlib.contextmanager
def _file_errors(doing: str, path: str | Path) -> Iterator[None]:
    """Turns the operating system's refusals into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{doing} {path}: {error.strerror or error}") from error


def _plain(value: Any) -> Any:
    """What `json` cannot write by itself: numpy values and paths."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")
