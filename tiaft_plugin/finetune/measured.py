"""What a stage leaves behind: the network as it was then, and what was measured."""

from dataclasses import dataclass
from typing import Any

from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.recipes import Stage
from tiaft_plugin.network.net import Network
from tiaft_plugin.tiles.tileset import TileSet


@dataclass(frozen=True)
class Sets:
    """The tiles of a run: trained on, measured after each epoch, measured at the end only."""

    train: TileSet
    val: TileSet | None = None
    test: TileSet | None = None

    def named(self) -> dict[str, TileSet]:
        """Return the sets that there are, by the names that reports give them."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: tiles for name, tiles in every.items() if tiles is not None}


@dataclass(frozen=True)
class Measured:
    """What a stage's training gave.

    `rows` are those of ``metrics.csv``; `val` and `test` tell how the network that was kept does,
    `kept` being its epoch (0: none was trained). `optimizer` is its class, or empty. `seconds` and
    `peak_gib` (of a GPU's memory; on CPUs of the process, from its start) are of all its runs
    together.
    """

    rows: list[dict[str, Any]]
    val: Evaluation | None
    test: Evaluation | None
    optimizer: str
    kept: int
    seconds: float
    peak_gib: float


@dataclass(frozen=True)
class StageResult:
    """A stage that has ended."""

    stage: Stage
    net: Network
    measured: Measured
    augmented: bool
