"""The search in two stages (paper 3): block ends first, then the layers around the best of them."""

from collections.abc import Sequence

import numpy as np

from tiaft_extensions.truncation.backbones.cuts import WHOLE, Cut


def position(cuts: Sequence[Cut], name: str) -> int:
    """Return where in a backbone's cuts (shallow to deep) one of this name is; else the last."""
    for number, cut in enumerate(cuts):
        if name in (cut.name, cut.stage) or cut.name.endswith(f".{name}"):
            return number
    return len(cuts) - 1


def block_ends(cuts: Sequence[Cut]) -> list[str]:
    """Return the ends of a backbone's stages, T1, T2, …; of all blocks where it has no stages."""
    ends = [cut.stage for cut in cuts if cut.stage]
    return ends or [cut.name for cut in cuts if not cut.layer]


def layers_around(cuts: Sequence[Cut], tried: Sequence[str], best: str, most: int) -> list[str]:
    """Return cuts between those that were tried next below and next above the best, not tried yet.

    Evenly spread where there are more than `most`.
    """
    at = position(cuts, best)
    before = {position(cuts, name) for name in tried}
    low = max((number for number in before if number < at), default=-1)
    high = min((number for number in before if number > at), default=len(cuts))
    inside = [n for n in range(low + 1, high) if n not in before and cuts[n].name != WHOLE]
    if len(inside) > most:
        chosen = np.linspace(0, len(inside) - 1, most).round().astype(int)
        inside = [inside[number] for number in chosen]
    return [cuts[number].name for number in inside]
