"""Where the time of a slide went: that of the run itself, and that of the threads that read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_BOUND = 0.2  # of the time: so much waiting for tiles is worth a remedy
_LEAST = 0.01  # of the time: how fast less computing could be is anybody's guess
_DIGITS = 4  # of shares, in the store
_ROUNDED = 1e-3  # how far shares may be from 1 together


@dataclass(frozen=True)
class Timing:
    """What took `seconds` for `tiles`: it waited for tiles, computed, or wrote.

    Beside it `readers` threads read, decoded (resized, too) and prepared tiles, or had nothing to
    do: these seconds are of all threads together. `decoding` is None where a slide's library reads
    and decodes in one call: then `reading` is both.
    """

    tiles: int
    seconds: float
    waiting: float
    writing: float
    readers: int
    reading: float
    decoding: float | None
    preparing: float

    @property
    def rate(self) -> float:
        """Tiles per second."""
        return self.tiles / max(self.seconds, 1e-9)

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the run's own time, 1 together."""
        found = _shares({"waiting": self.waiting, "writing": self.writing}, self.seconds, "rest")
        return {
            "waiting": found["waiting"],
            "computing": found["rest"],
            "writing": found["writing"],
        }

    @property
    def reader_shares(self) -> dict[str, float]:
        """Shares of the time of all readers, 1 together."""
        if self.decoding is None:
            used = {"reading and decoding": self.reading}
        else:
            used = {"reading": self.reading, "decoding": self.decoding}
        used["preparing"] = self.preparing
        return _shares(used, self.seconds * self.readers, "idle")

    @property
    def facts(self) -> dict[str, Any]:
        """What a store keeps of it (docs/formats.md)."""
        return {
            "tiles": self.tiles,
            "seconds": round(self.seconds, 3),
            "tiles_per_second": float(f"{self.rate:.4g}"),
            "shares": _rounded(self.shares),
            "readers": self.readers,
            "reader_shares": _rounded(self.reader_shares),
        }

    def __str__(self) -> str:
        """Return a line for people, with a remedy where reading bounds the run."""
        own, readers = _percent(self.shares), _percent(self.reader_shares)
        who = "1 reader" if self.readers == 1 else f"{self.readers} readers"
        line = f"{_plain(self.rate)} tiles/s ({own.replace('waiting', 'waiting for tiles')}; "
        line += f"{who}: {readers})"
        if self.shares["waiting"] < _BOUND:
            return line
        times = 1 / max(self.shares["computing"], _LEAST)
        possible, more = self.rate * times, max(1, round(self.readers * (times - 1)))
        bound = f"reader-bound: {_plain(self.rate)} of {_plain(possible)} tiles/s"
        return f"{line}; {bound}; {more} more --workers"


def added(one: Timing | None, other: Timing | None) -> Timing | None:
    """Return the times of two parts of a slide together: seconds are then of both workers."""
    if one is None or other is None:
        return one or other
    decoding, reading = None, one.reading + other.reading
    if one.decoding is not None and other.decoding is not None:
        decoding = one.decoding + other.decoding
    else:
        reading += (one.decoding or 0.0) + (other.decoding or 0.0)
    return Timing(
        one.tiles + other.tiles,
        one.seconds + other.seconds,
        waiting=one.waiting + other.waiting,
        writing=one.writing + other.writing,
        readers=one.readers,
        reading=reading,
        decoding=decoding,
        preparing=one.preparing + other.preparing,
    )


def fault_of(facts: Any) -> str:
    """Return what is wrong with the timing that a store has (`Timing.facts`), or nothing."""
    if not isinstance(facts, Mapping):
        return "is no table"
    for name in ("tiles", "seconds", "tiles_per_second", "readers"):
        if not _is_amount(facts.get(name)):
            return f"has no {name}"
    for name in ("shares", "reader_shares"):
        shares = facts.get(name)
        if not isinstance(shares, Mapping) or not all(map(_is_amount, shares.values())):
            return f"has no {name}"
        if abs(sum(shares.values()) - 1) > _ROUNDED:
            return f"has {name} that are {sum(shares.values()):.3g} together, not 1"
    return ""


def _shares(used: Mapping[str, float], whole: float, rest: str) -> dict[str, float]:
    """Return what each is of the whole, in seconds, and what is left for the rest."""
    whole = max(whole, sum(used.values()), 1e-9)
    shares = {name: seconds / whole for name, seconds in used.items()}
    return {**shares, rest: 1 - sum(shares.values())}


def _rounded(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: round(max(share, 0.0), _DIGITS) for name, share in shares.items()}


def _percent(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {max(share, 0):.0%}" for name, share in shares.items())


def _plain(rate: float) -> str:
    return f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


def _is_amount(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
