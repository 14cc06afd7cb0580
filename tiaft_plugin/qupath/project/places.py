"""Where QuPath says that files lie: URIs, projects that were moved, and drives of Windows."""

import ntpath
import posixpath
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from urllib.parse import unquote, urlsplit

from tiaft_plugin.errors import TiaftError

_DRIVE = re.compile(r"/?[A-Za-z]:(?=[\\/]|$)")


def path_text(uri: str) -> str | None:
    """Return the path in a ``file:`` URI, on whatever machine it was written; None for others.

    ``file:/C:/a%20b`` is ``C:/a b``, ``file://server/share`` is ``//server/share``.
    """
    try:
        parts = urlsplit(uri)
    except ValueError:
        return None
    if parts.scheme.lower() != "file":
        return None
    path = unquote(parts.path)
    host = unquote(parts.netloc)
    if host and host.lower() != "localhost":
        return f"//{host}{path}"
    if _DRIVE.match(path):
        return path.lstrip("/")
    return path or None


def is_windows(path: str) -> bool:
    """Whether a path can only be one of Windows: with a drive, a server, or backslashes alone."""
    return bool(_DRIVE.match(path)) or path[:2] in ("//", "\\\\") or path[:1] == "\\"


def file_name(path: str) -> str:
    """Return the last part of a path of any system."""
    return _module(path).basename(path.rstrip("/\\" if is_windows(path) else "/"))


def moved_along(path: str, before: str, now: str) -> str | None:
    """Return where a file lies if it moved together with a folder, from `before` to `now`.

    As QuPath finds the images of a project that was copied with them; None where the two never
    had a way from one to the other (two drives).
    """
    system = _module(before)
    if is_windows(path) != is_windows(before):
        return None
    try:
        way = system.relpath(path, before)
    except ValueError:  # two drives
        return None
    way = way.replace("\\", "/") if system is ntpath else way
    return posixpath.normpath(posixpath.join(now, way))


def read_moves(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of ``OLD=NEW`` in the given order. Raises TiaftError."""
    moves = []
    for text in texts:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise TiaftError(
                f"--map {text!r}: give it as OLD=NEW, the folder in the project and where it is now"
            )
        moves.append((old, new))
    return moves


def mapped(path: str, moves: Sequence[tuple[str, str]]) -> str | None:
    """Return a path with the first OLD that it begins with replaced by its NEW, or None.

    Whole folders only: /data/a does not begin /data/ab. Windows tells no case apart, nor / and \\.
    """
    for old, new in moves:
        begin, parts = _parts(old), _parts(path)
        if is_windows(old) == is_windows(path) and parts[: len(begin)] == begin:
            rest = _parts(path, keep_case=True)[len(begin) :]
            slash = "\\" if is_windows(new) and "\\" in new else "/"
            return slash.join([new.rstrip("/\\") if new.strip("/\\") else "", *rest])
    return None


def _parts(path: str, keep_case: bool = False) -> list[str]:
    system = _module(path)
    path = system.normpath(path)
    if system is ntpath:
        path = path.replace("\\", "/")
        path = path if keep_case else path.lower()
    return path.rstrip("/").split("/")


def _module(path: str) -> ModuleType:
    return ntpath if is_windows(path) else posixpath
