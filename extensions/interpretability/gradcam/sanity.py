"""Whether a map shows what the network has learnt: with random weights it has to change.

After Adebayo et al., "Sanity checks for saliency maps" (arXiv 1810.03292): weights become random
layer by layer, from the output to the input, and what was randomised stays so.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from tiaft_extensions.interpretability.gradcam.cams import Maps, cams
from tiaft_extensions.interpretability.subject import (
    NO_PRETRAINED,
    RANDOM,
    Subject,
    default_layers,
    trunk,
    variants,
)

CLASSIFIER = "classifier"
STEPS = 6  # parts of the backbone
UNCHANGED = 0.9  # a map that still correlates so with the trained network's has not changed


@dataclass(frozen=True)
class Step:
    """What is left of maps once the network is random from `part` to the output.

    `plus` and `plain` are (N,) rank correlations (Spearman) of each tile's map by Grad-CAM++ and
    Grad-CAM with that of the trained network, NaN where one of them is flat; `maps` are the new.
    """

    part: str
    maps: Maps
    plus: np.ndarray
    plain: np.ndarray

    @property
    def changed(self) -> bool:
        """Whether Grad-CAM++'s maps are others now; flat ones are."""
        return not np.mean(np.nan_to_num(self.plus)) > UNCHANGED


def check_sanity(
    subject: Subject, tiles: np.ndarray, cls: str, layer: str | None = None, seed: int = 0
) -> list[Step]:
    """Return what becomes of maps of uint8 tiles (N, H, W, 3) with more and more random weights.

    The first step is the trained network itself, the last one is random throughout.
    """
    trained = cams(subject, tiles, cls, layer)
    steps = []
    for part, changed in randomised(subject, seed):
        maps = cams(changed, tiles, cls, layer)
        steps.append(
            Step(part, maps, alike(trained.plus, maps.plus), alike(trained.plain, maps.plain))
        )
    ones = alike(trained.plus, trained.plus), alike(trained.plain, trained.plain)
    return [Step("none", trained, *ones), *steps]


def randomised(subject: Subject, seed: int = 0) -> Iterator[tuple[str, Subject]]:
    """Give (part, network that is random from that part to the output), from last to first part.

    Parts are the classifier and up to six of the backbone.
    """
    random = variants(subject, NO_PRETRAINED, seed)[RANDOM].network.state_dict()
    changed = replace(subject, network=deepcopy(subject.network))
    state = changed.network.state_dict()  # shares the network's memory
    for part, names in _parts(subject):
        for name in names:
            state[name].copy_(random[name])
        yield part, changed


def alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each map of `one` with that of `other`, (N, h, w) both.

    NaN where a map is flat.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    norms = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norms, out=np.full(len(a), np.nan), where=norms > 0)


def _parts(subject: Subject) -> list[tuple[str, list[str]]]:
    """Return parts with the names of their weights, from the output to the input."""
    names = list(subject.network.state_dict())
    prefix = _prefix(subject)
    inside = [name for name in names if name.startswith(prefix)]
    head = [name for name in names if not name.startswith(prefix)]
    parts: list[tuple[str, list[str]]] = []
    start = 0
    for layer in default_layers(subject, STEPS):
        own = [i for i, name in enumerate(inside) if name.startswith(f"{prefix}{layer}.")]
        if own and own[-1] >= start:
            parts.append((layer, inside[start : own[-1] + 1]))
            start = own[-1] + 1
    if start < len(inside):  # a plug-in's classifier
        head = inside[start:] + head
    return ([(CLASSIFIER, head)] if head else []) + parts[::-1]


def _prefix(subject: Subject) -> str:
    inner: nn.Module = trunk(subject)
    return next(
        (
            f"{name}."
            for name, module in subject.network.named_modules()
            if module is inner and name
        ),
        "",
    )
