"""Lists in messages: the first few, and how many more."""

from collections.abc import Sequence


def some(items: Sequence[str], most: int = 5) -> str:
    """Return the first few items of a list in words, and how many more there are."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")
