"""What a finetuner is given, and what it gives back. Nothing heavy is imported here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.tileset import TileSet

Inputs = Literal["tiles", "bags", "slides"]
Targets = Literal["classes", "multilabel", "regression"]


@dataclass(frozen=True)
class Samples:
    """N samples whose input is no single tile, or whose target is no single class.

    `files` holds one tuple a sample: a tile, the tiles of a bag, or a slide. `targets` is (N, T):
    0 or 1 for labels, any numbers for regression; `target_names` are T names. `groups` are slides
    or patients, or None; `mpp` is the tiles' µm/px, `tile_size` their px, where they have one.
    """

    root: Path
    files: tuple[tuple[Path, ...], ...]
    targets: tuple[tuple[float, ...], ...]
    target_names: tuple[str, ...]
    groups: tuple[str | None, ...]
    tile_size: int | None = None
    mpp: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """One fine-tuning. The numbers are those of paper 1, section 3.2, whose iterations are epochs.

    `train` and `val` are tile sets where inputs are tiles and targets classes, else samples.
    `backbone` None is the init file's, or Xception; `mean` and `std` None are the init file's, or
    timm's; `tile_size` (px) None is the tiles' own, another one resizes them; `mpp` None is the
    tile set's.

    `options` are a finetuner's own settings by name, which it checks itself. Of the fields,
    `epochs` and `lrs` (one number for each of two stages; no epochs skip a stage's training) and
    `freeze_batchnorm` are two-stage's own: another finetuner may read them otherwise, or not.
    """

    out: Path
    train: TileSet | Samples
    val: TileSet | Samples | None = None
    inputs: Inputs = "tiles"
    targets: Targets = "classes"
    backbone: str | None = None
    backbone_args: dict[str, Any] = field(default_factory=dict)
    init: str = "imagenet"
    hidden: tuple[int, ...] = (2048,)
    tile_size: int | None = None
    mpp: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    epochs: tuple[int, ...] = (20, 10)
    lrs: tuple[float, ...] = (4e-4, 5e-5)
    batch_size: int = 128
    freeze_batchnorm: bool = False
    seed: int = 0
    device: str = "auto"
    workers: int = 0
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneResult:
    """The files of a fine-tuning, its last metrics by name, and a few lines for people.

    `stage1` and `confusion` are None where there is no such file; `warnings` are one line each.
    """

    model: Path
    metrics: Path
    report: Path
    stage1: Path | None = None
    confusion: Path | None = None
    last: dict[str, float] = field(default_factory=dict)
    summary: str = ""
    warnings: tuple[str, ...] = ()


class Finetuner(Protocol):
    """Makes a model file out of labelled samples, of the kinds that it says it takes."""

    inputs: frozenset[Inputs]
    targets: frozenset[Targets]

    def __call__(self, job: FinetuneJob) -> FinetuneResult:
        """Run a job; files go into its folder `out`. Raises TiaftError."""


def refuse_unsuitable(name: str, finetuner: Finetuner, job: FinetuneJob) -> None:
    """Raise TiaftError unless a finetuner takes the kinds of inputs and targets of a job."""
    if job.inputs not in finetuner.inputs or job.targets not in finetuner.targets:
        raise TiaftError(
            f"finetuner {name} takes {', '.join(sorted(finetuner.inputs))} with "
            f"{', '.join(sorted(finetuner.targets))}, not {job.inputs} with {job.targets}: "
            "choose another --finetuner"
        )
