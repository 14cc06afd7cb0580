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
    """One fine-tuning.

    `train`, `val` and `test` are tile sets where inputs are tiles, else samples: `val` is measured
    after every epoch and may choose which one is kept, `test` is measured at the end and chooses
    nothing. `stain` (``macenko``) normalises every tile, later ones too. `tile_size` (px) None is
    the tiles' own, another one resizes them; `mpp` None is the tile set's; `mean` and `std` None
    are the init file's, or timm's.

    Whatever else is None is the recipe's (see ``tiaft_plugin.finetune.recipes``), or the choice of
    a finetuner that knows no recipes: `backbone` (before it comes the init file's), `hidden`,
    `epochs` and `lrs` (one number a stage; no epochs skip its training), `batch_size` (tiles a
    step, over all devices), `augment`, `balance`, `keep`. `options` are further settings by name.

    `out` also keeps what an interrupted run needs to go on; a checkpoint is written every
    `checkpoint_minutes`, and every `checkpoint_steps` where given. `cache` is a folder where Part
    A's outputs of frozen stages stay for other runs. `resume_anyway` goes on where threads,
    processor or versions differ from before. `notes` are warnings about the data, one line each,
    that the result and the report repeat.
    """

    out: Path
    train: TileSet | Samples
    val: TileSet | Samples | None = None
    test: TileSet | Samples | None = None
    inputs: Inputs = "tiles"
    targets: Targets = "classes"
    recipe: str = "ftx2048"
    backbone: str | None = None
    backbone_args: dict[str, Any] = field(default_factory=dict)
    init: str = "imagenet"
    hidden: tuple[int, ...] | None = None
    tile_size: int | None = None
    mpp: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stain: Literal["none", "macenko"] = "none"
    epochs: tuple[int, ...] | None = None
    lrs: tuple[float, ...] | None = None
    batch_size: int | None = None
    augment: tuple[str, ...] | None = None
    balance: Literal["none", "weights", "sampling"] | None = None
    keep: Literal["last", "best"] | None = None
    freeze_batchnorm: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_checkpointing: Literal["auto", "on", "off"] = "auto"
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    resume_anyway: bool = False
    cache: Path | None = None
    devices: int = 1
    nodes: int = 1
    seed: int = 0
    device: str = "auto"
    workers: int = 0
    overwrite: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinetuneResult:
    """The files of a fine-tuning, its last metrics by name, and a few lines for people.

    `stage1`, `confusion`, `labels` (a row for each of several labels) and `tiles` (one for each
    held-out tile) are None where there is no such file; `warnings` are one line each.
    """

    model: Path
    metrics: Path
    report: Path
    stage1: Path | None = None
    confusion: Path | None = None
    labels: Path | None = None
    tiles: Path | None = None
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
