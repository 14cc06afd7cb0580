"""What a stage leaves behind: the network as it was then, and what was measured."""

from dataclasses import dataclass
from typing import Any

from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.recipes import Stage
from tiaft_plugin.network.net import Network


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
