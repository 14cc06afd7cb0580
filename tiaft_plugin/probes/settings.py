"""How a run of a probe is made, and the tables that its analysis ends in."""

from dataclasses import dataclass, field
from typing import Any

COLOUR = "colour"  # the name of the feature set that knows nothing but colour


@dataclass(frozen=True)
class Settings:
    """How a run is made; all of it decides the result, and stands in ``summary.json``."""

    folds: int = 5
    repeats: int = 50
    seed: int = 0
    grouped: bool = True
    permutations: int = 99
    draws: int = 2000
    reference: str = ""
    select: str = "union"
    alpha: float = 0.05
    leak_control: bool = True


@dataclass
class Analysis:
    """Rows as docs/formats.md has them, and what else the summary gets."""

    scores: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
