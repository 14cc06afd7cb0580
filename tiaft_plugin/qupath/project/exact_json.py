"""QuPath's JSON files, changed in one place and otherwise kept to the digit."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import write_atomically

_LONGEST = 18  # digits that fit into a Java long, and that nobody writes in another way


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file; `what` it should be, for the error. Raises TiaftError."""
    return _parsed(path, what)


@contextmanager
def edited_json(path: Path, what: str) -> Iterator[dict[str, Any]]:
    """Give the JSON object in a file to change; written when the block ends well, atomically.

    Members keep their order and their values, unknown ones too. Numbers that Python would write
    in another way than they stand there come as text that becomes the same number again: neither
    1e400 nor a 20th digit is lost. What was changed meanwhile is the caller's to see. Raises
    TiaftError for what is no JSON object, and Stopped where it cannot be written.
    """
    mark = uuid.uuid4().hex

    def integer(digits: str) -> int | str:
        return int(digits) if len(digits) <= _LONGEST and digits != "-0" else mark + digits

    content = _parsed(
        path, what, parse_int=integer, parse_float=mark.__add__, parse_constant=mark.__add__
    )
    yield content
    write_json(path, content, mark)


def write_json(path: Path, content: dict[str, Any], mark: str = "") -> None:
    """Write an object as QuPath does, with the rights of the file that was there. Atomic."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if mark:
        text = re.sub(f'"{mark}([^"]*)"', r"\1", text)
    # Half of a surrogate pair has no UTF-8; as an escape it is what stood there before.
    text = re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)
    path = path.resolve()  # a link stays a link
    mode = path.stat().st_mode if path.exists() else None
    try:
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        if mode is not None:
            with suppress(OSError):  # somebody else's file system has its own idea of rights
                path.chmod(mode)
    except Stopped as error:  # a full disk
        raise Stopped(f"{error}: it is as it was") from error
    except OSError as error:
        raise Stopped(f"{path} cannot be written: {error.strerror}: it is as it was") from error


def _parsed(path: Path, what: str, **options: Any) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), **options)
    except OSError as error:
        raise TiaftError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TiaftError(f"{path} is no {what}: {_reason(path, error)}") from error
    if not isinstance(content, dict):
        raise TiaftError(f"{path} is no {what}: it holds no JSON object")
    return content


def _reason(path: Path, error: Exception) -> str:
    if path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    return f"it is no whole JSON ({error})"
