"""Kinds of values that options of several commands take."""

from typing import Any

import click


class CommaList(click.ParamType):
    """Values with commas between them, each of one kind; an empty text is an empty tuple."""

    def __init__(self, name: str, kind: type, length: int | None = None):
        self.name, self.kind, self.length = name, kind, length

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple:
        """Return a tuple, or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        try:
            found = tuple(self.kind(part) for part in parts)
        except ValueError:
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        if "" in parts or (self.length is not None and len(found) != self.length):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return found


class KeyValue(click.ParamType):
    """KEY=VALUE; the value becomes a number, true or false where it reads as one."""

    name = "key=value"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Any]:
        """Return (key, value), or fail with a usage error."""
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, _plain(text)


def _plain(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


CLASSES = CommaList("a,b,c", str)
WIDTHS = CommaList("widths such as 2048 or 2048,2048", int)
NUMBERS = CommaList("three numbers r,g,b", float, length=3)
KEY_VALUE = KeyValue()
