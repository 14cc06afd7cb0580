"""How an attention network is trained: the paper's stage 1, and what may be set otherwise."""

from dataclasses import dataclass

HIDDEN = (256, 64)
ATTENTION = 32


@dataclass(frozen=True)
class Recipe:
    """The paper's stage 1: Adam, 20 epochs, one slide a step, cross-entropy.

    `held_out` folds of the training part are made, by group and stratified, and one of them
    chooses the epoch: best accuracy, then lowest loss, then the earliest. With `standardise` (not
    in the paper), features have mean 0 and standard deviation 1 over the training tiles.
    """

    epochs: int = 20
    lr: float = 1e-3
    hidden: tuple[int, ...] = HIDDEN
    attention: int = ATTENTION
    gated: bool = False
    standardise: bool = True
    held_out: int = 5
