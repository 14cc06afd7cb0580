"""What a top-k fine-tuning is told; the defaults are the paper's second stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import FinetuneJob


@dataclass(frozen=True)
class TopKSettings:
    """The paper's second stage: 64 tiles a slide, Adam 1e-5, 20 epochs, a slide a step.

    `attention` is the file of the head to begin with, which ``tiaft probe mil`` wrote; `slides`
    are slides, folders of tiles, or folders that hold them, where samples are stores; `k` tiles
    of each bag learn, `chunk` of them are in memory at once: the gradient is that of all. `keep`
    is the best epoch on validation bags (accuracy, then loss, then the earliest; 0 is the frozen
    encoder), or the last.
    `stain_target` is the image of the stores' stain normalisation, where they had one.
    """

    attention: Path
    slides: tuple[Path, ...] = ()
    k: int = 64
    epochs: int = 20
    lr: float = 1e-5
    chunk: int = 16
    keep: Literal["best", "last"] = "best"
    stain_target: Path | None = None

    def __post_init__(self) -> None:
        for name in ("k", "epochs", "chunk"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise TiaftError(f"setting {name} is {value!r}: 1 or more, whole")
        if not isinstance(self.lr, int | float) or not (isfinite(self.lr) and self.lr > 0):
            raise TiaftError(f"setting lr is {self.lr!r}: a number above 0")
        if self.keep not in ("best", "last"):
            raise TiaftError(f"setting keep is {self.keep!r}: best or last")

    @property
    def numbers(self) -> dict[str, Any]:
        """What decides the result, without the paths."""
        return {name: getattr(self, name) for name in ("k", "epochs", "lr", "chunk", "keep")}


def settings_of(job: FinetuneJob) -> TopKSettings:
    """Return settings out of a job's options; its own epochs, lrs and keep come before them.

    Raises TiaftError for names that there are not.
    """
    given: dict[str, Any] = dict(job.options)
    known = [field.name for field in fields(TopKSettings)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TiaftError(f"no setting is called {unknown[0]}: there is {', '.join(known)}")
    if not given.get("attention"):
        raise TiaftError(
            "top-k begins with the head of an attention run: give option attention, "
            "RUN/attention/NAME/fold-0.safetensors of `tiaft probe mil … --out RUN`"
        )
    given["attention"] = Path(given["attention"])
    given["slides"] = _paths(given.get("slides", ()))
    if given.get("stain_target") is not None:
        given["stain_target"] = Path(given["stain_target"])
    own: Mapping[str, Any] = {
        "epochs": job.epochs and job.epochs[0],
        "lr": job.lrs and job.lrs[0],
        "keep": job.keep,
    }
    return TopKSettings(**given | {name: value for name, value in own.items() if value})


def _paths(given: Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    return (Path(given),) if isinstance(given, Path | str) else tuple(map(Path, given))
