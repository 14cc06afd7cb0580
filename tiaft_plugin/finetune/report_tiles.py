"""Tiles shown in a run's report: those that the model finds hardest, as pictures."""

import base64
import io
from pathlib import Path

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.page import shown
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.tileset import TileSet

MOST = 24
_SIDE = 160  # px of a picture in the page


def worst(found: Evaluation) -> list[int]:
    """Return the indices of the tiles of highest loss, the highest first."""
    return np.argsort(-found.losses, kind="stable")[:MOST].tolist()


def gallery(tiles: TileSet, found: Evaluation) -> str:
    """Return pictures of the hardest tiles, with what they are, and what the model says."""
    figures = "".join(_figure(tiles, found, index) for index in worst(found))
    return f'<div class="tiles">{figures}</div>'


def names_of(found: Evaluation, given: np.ndarray) -> str:
    """Return the classes that 0 and 1 (C,) stand for, joined by ";"."""
    return ";".join(name for name, has in zip(found.classes, given, strict=True) if has)


def _figure(tiles: TileSet, found: Evaluation, index: int) -> str:
    file = tiles.files[index]
    picture = _picture(file)
    drawn = f'<img alt="" src="{picture}">' if picture else "<em>The file cannot be read.</em>"
    lines = [*_words(found, index), f"<small>{shown(tiles.shown(file))}</small>"]
    if tiles.groups[index] is not None:
        lines.append(f"<small>of {shown(tiles.groups[index])}</small>")
    return f"<figure>{drawn}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _words(found: Evaluation, index: int) -> list[str]:
    """Return what a tile is and what the model says, with the probability of each."""
    truth, said = (_named(found, index, given[index]) for given in (found.truth, found.said))
    return [f"is {truth}", "rightly said" if truth == said else f"said: {said}"]


def _named(found: Evaluation, index: int, given: np.ndarray) -> str:
    chances = zip(found.classes, found.probabilities[index], given, strict=True)
    names = [f"<b>{shown(name)}</b> ({_percent(chance)})" for name, chance, has in chances if has]
    return ", ".join(names) or "<b>none</b>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\xa0%" if 0.0005 <= share < 0.9995 else f"{100 * share:.3g}\xa0%"


def _picture(file: Path) -> str:
    """Return a small JPEG of a tile as a data URL; empty where the file cannot be read."""
    from PIL import Image

    try:
        image = Image.fromarray(read_image(file))
    except TiaftError:
        return ""  # a picture that is missing must not cost the run its report
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
