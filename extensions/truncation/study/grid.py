"""The grid of a study: what is trained, from which weights, on how many tiles, how often."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiaft_extensions.truncation.backbones.cuts import WHOLE
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some

STRATEGIES = {  # paper 3, and its published code
    "ttl": "truncated, all of it trains",
    "lwft": "layer-wise fine-tuning: frozen up to the cut, the rest of the backbone at lr / 10",
    "tf": "TransFusion: pretrained up to the cut, then the rest at half width from random weights",
}
INITS = ("pretrained", "random", "meanvar")


@dataclass(frozen=True)
class Variant:
    """One kind of network of a study: how it is made of a backbone, and from which weights."""

    strategy: str
    backbone: str
    cut: str
    init: str

    @property
    def key(self) -> str:
        """A name for files, of letters, digits and ``-._``."""
        parts = (self.strategy, self.backbone, self.cut, self.init)
        return re.sub(r"[^A-Za-z0-9_.-]", "-", "_".join(parts))

    @property
    def network(self) -> str:
        """What tables and figures call the network, its weights aside."""
        if self.strategy != "ttl":
            return f"{self.strategy.upper()} {self.cut}"
        return self.backbone if self.cut == WHOLE else f"{self.backbone}:{self.cut}"

    @property
    def title(self) -> str:
        """What tables and figures call it."""
        return self.network if self.strategy != "ttl" else f"{self.network}, {self.init}"


@dataclass(frozen=True)
class Cell:
    """One training of a study: a variant, a percentage of the training tiles, and which repeat."""

    variant: Variant
    percent: float
    repeat: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.variant.key}_{self.percent:g}pct_r{self.repeat}"


def variants_of(
    backbone: str,
    cuts: Sequence[str],
    inits: Sequence[str],
    baselines: Sequence[str] = ("lwft", "tf"),
    also: Sequence[str] = (),
) -> list[Variant]:
    """Return the variants of a study, the whole network among them, each once.

    `also` are further backbones, such as CBRs, trained whole from random weights; the baselines
    begin with pretrained ones. Raises TiaftError for words that are not known.
    """
    _refuse_unknown("--init", inits, INITS)
    _refuse_unknown("--baselines", baselines, [name for name in STRATEGIES if name != "ttl"])
    inside = [cut for cut in dict.fromkeys(cuts) if cut != WHOLE]
    found = [Variant("ttl", backbone, cut, init) for init in inits for cut in (*inside, WHOLE)]
    if "pretrained" in inits:
        found += [Variant(name, backbone, c, "pretrained") for name in baselines for c in inside]
    found += [Variant("ttl", other, WHOLE, "random") for other in also]
    return list(dict.fromkeys(found))


def cells_of(variants: Sequence[Variant], percents: Sequence[float], repeats: int) -> list[Cell]:
    """Return the cells, first repeats first, so that a study cut short has some of everything."""
    wrong = [percent for percent in percents if not 0 < percent <= 100]
    if wrong or not percents:
        raise TiaftError(
            f"--fractions {some([f'{p:g}' for p in wrong]) or 'is empty'}: percentages of the "
            "training tiles, above 0 and up to 100"
        )
    return [
        Cell(variant, percent, repeat)
        for repeat in range(repeats)
        for percent in sorted(set(percents), reverse=True)
        for variant in variants
    ]


def share_of(tiles: TileSet, percent: float, seed: int, repeat: int) -> TileSet:
    """Return a percentage of a tile set, of each class or combination of labels alike.

    The tiles of a smaller percentage are among those of a larger one; `seed` and `repeat` decide
    which. Each class keeps two tiles or more, and each of several labels two with it.
    """
    if percent >= 100:
        return tiles
    rng = np.random.default_rng([seed, repeat, 5])  # not the numbers that split
    order = rng.permutation(len(tiles))
    labels = np.array(tiles.labels)[order]
    keep = np.zeros(len(tiles), dtype=bool)
    for label in sorted(set(tiles.labels)):
        rows = np.flatnonzero(labels == label)
        keep[rows[: max(1, math.ceil(len(rows) * percent / 100))]] = True
    names = [set(tiles.names[row]) for row in order]
    for name in tiles.classes:
        for wanted in (True, False) if tiles.multilabel else (True,):
            rows = np.flatnonzero([(name in has) == wanted for has in names])
            keep[rows[:2]] = True
    return tiles.subset(sorted(order[keep].tolist()))


def _refuse_unknown(option: str, words: Sequence[str], known: Sequence[str]) -> None:
    unknown = [word for word in words if word not in known]
    if unknown:
        raise TiaftError(f"{option} {some(unknown)}: there is {', '.join(known)}")
