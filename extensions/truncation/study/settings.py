"""What a truncation study is told."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

RECIPE = "peng"  # paper 3's: Adam 1e-4, batches of 64, halved on plateaus, best epoch by val loss


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """A study's folder, grid and training; what is None is the recipe's (paper 3, section 3).

    `cuts` empty are the backbone's block ends. `percents` are of the training tiles. `weights` are
    ``imagenet`` or a file; `also` are further backbones, trained whole from random weights. With
    `search` the layers around the best block end are tried, too, `search_layers` of them at most.
    """

    out: Path
    backbone: str
    cuts: tuple[str, ...] = ()
    inits: tuple[str, ...] = ("pretrained", "random", "meanvar")
    percents: tuple[float, ...] = (5, 10, 25, 50, 100)  # the grid is not in the paper
    repeats: int = 3
    baselines: tuple[str, ...] = ("lwft", "tf")
    also: tuple[str, ...] = ()
    weights: str = "imagenet"
    search: bool = False
    search_layers: int = 8
    backbone_args: dict[str, Any] = field(default_factory=dict)
    tile_size: int | None = None
    mpp: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    stain: Literal["none", "macenko"] = "none"
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    augment: tuple[str, ...] | None = None
    freeze_batchnorm: bool = False
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    device: str = "auto"
    workers: int = 0

    def as_weights_ask(self) -> Self:
        """Return these with mean, std and arguments of the backbone from the card of `weights`.

        Only where it has one, and nothing else is asked for: all trainings then get the same
        pixels, those from random weights, too. Raises TiaftError for a damaged file.
        """
        from tiaft_plugin.network.card import has_card, read_card

        path = Path(self.weights)
        if not has_card(path) or (card := read_card(path)).backbone != self.backbone:
            return self
        args = self.backbone_args or card.backbone_args
        mean, std = self.mean or card.mean, self.std or card.std
        return replace(self, backbone_args=args, mean=mean, std=std)

    def decisive(self) -> dict[str, Any]:
        """Return what all cells of a study share, as JSON has it: the grid itself may grow."""
        grid = {"out", "cuts", "inits", "percents", "repeats", "baselines", "also", "search"}
        aside = grid | {"search_layers", "device", "workers", "weights"}
        return {name: value for name, value in asdict(self).items() if name not in aside}
