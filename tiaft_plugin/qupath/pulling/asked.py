"""What is asked of a pull, and what it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiaft_plugin.qupath.pulling.labels import Labels


@dataclass(frozen=True)
class How:
    """How annotations become tiles: `tile_size` px at `mpp` µm/px, every `stride` px (their size).

    A tile needs `min_coverage` of itself within a label. `corrections_of` is the name of a model or
    the beginning of its SHA-256: its tiles whose class a person changed are pulled, too, and where
    `tile_size` or `mpp` is None they decide it. `annotations` False pulls nothing else.
    """

    tile_size: int | None = None
    mpp: float | None = None
    stride: int | None = None
    min_coverage: float = 0.5
    labels: Labels = field(default_factory=Labels)
    corrections_of: str | None = None
    annotations: bool = True


@dataclass(frozen=True)
class Where:
    """Where slides are and whose.

    `slides` are slides and folders of them, `moved` folders as a project has them and where they
    are; `mpp` (µm/px at baseline) serves slides whose file has none; `patients` is a table.
    """

    slides: Sequence[Path] = ()
    moved: Sequence[tuple[str, str]] = ()
    mpp: float | None = None
    patients: Path | None = None


@dataclass(frozen=True)
class Pulled:
    """What a slide gave: how many tiles of each label, how many of them corrections, and notes.

    `reason` says why it gave nothing.
    """

    slide: str
    counts: Mapping[str, int] = field(default_factory=dict)
    corrected: int = 0
    notes: Sequence[str] = ()
    reason: str = ""
