"""What a fine-tuning on expression is told: paper 5's defaults, as far as it gives any."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from tiaft_plugin.errors import TiaftError

Train = Literal["head", "last", "whole"]
Pooling = Literal["mean", "attention"]
Head = Literal["linear", "mlp"]

_CHOICES = {"train": get_args(Train), "pooling": get_args(Pooling), "head": get_args(Head)}


@dataclass(frozen=True)
class TuneSettings:
    """Numbers and choices of a run. Paper 5 names the two losses only; the rest is CLIP's and
    TANGLE's, as the notes on the papers say.

    `train` is what learns besides the heads: nothing of the encoder, its `blocks` last blocks, or
    all of it. A step takes `slides` slides and `tiles` tiles of each, of which `chunk` slides are
    in memory at once: the gradient is that of all. `width` is that of the projections;
    `temperature` the first one of the contrastive loss; `hidden` the width of the expression
    encoder's blocks (None: as many as genes, at most 4,096); `genes` keeps the most variable ones.
    The test takes `test_tiles` tiles of each slide, of the base and of what was tuned alike.
    """

    train: Train = "head"
    blocks: int = 1
    pooling: Pooling = "mean"
    head: Head = "linear"
    width: int = 256
    hidden: int | None = None
    genes: int | None = None
    tiles: int = 64
    test_tiles: int = 512
    slides: int = 64
    chunk: int = 16
    epochs: int = 50
    lr: float = 1e-4
    weight_decay: float = 1e-4
    warmup: float = 0.05
    temperature: float = 0.07
    dropout: float = 0.2
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise TiaftError(f"setting {name} is {getattr(self, name)!r}: {' or '.join(known)}")
        for name in ("blocks", "width", "tiles", "test_tiles", "slides", "chunk", "epochs"):
            if not _is_count(getattr(self, name)):
                raise TiaftError(f"setting {name} is {getattr(self, name)!r}: 1 or more, whole")
        for name in ("hidden", "genes"):
            if getattr(self, name) is not None and not _is_count(getattr(self, name)):
                raise TiaftError(f"setting {name} is {getattr(self, name)!r}: 1 or more, whole")
        if not self.lr > 0 or not self.temperature > 0 or not self.weight_decay >= 0:
            raise TiaftError("settings lr and temperature are above 0, weight_decay not below")
        if not 0 <= self.warmup < 1 or not 0 <= self.dropout < 1:
            raise TiaftError("settings warmup and dropout are from 0 to below 1")
        if self.slides < 2:
            raise TiaftError("setting slides is 1: a slide is told from others, 2 at least")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def read_settings(options: Mapping[str, Any]) -> TuneSettings:
    """Return settings out of a job's options. Raises TiaftError for names that there are not."""
    known = [field.name for field in fields(TuneSettings)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TiaftError(f"no setting is called {unknown[0]}: there is {', '.join(known)}")
    return TuneSettings(**options)
