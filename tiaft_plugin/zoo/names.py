"""Look a model up by name: a file in the user's folder, one of tiaft's names, or a plug-in's."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.card import is_file, read_card
from tiaft_plugin.plugins import Registered, collect
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.promises import ALIASES, FEATURES, PROMISES


@dataclass(frozen=True)
class NamedModel:
    """What a name stands for. `base` is the model, `view` what of it is wanted.

    `file` is None for a plug-in's model, which `load` builds. `classes` are those of the model,
    also where only its features are wanted.
    """

    name: str
    base: str
    view: str  # "classes" or "features"
    tile_size: int  # px
    mpp: float  # µm/px
    classes: tuple[str, ...]
    multilabel: bool = False  # any number of the classes a tile
    file: Path | None = None
    load: Callable[[], Any] | None = None
    plugin: str = "zoo"


def find(name: str) -> NamedModel | None:
    """Return what `name` stands for, or None. Loads no network.

    Raises TiaftError if a file of that name is there and its card is wrong, or if a plug-in has
    a model of that name and may not. What is wrong with others is a note on stderr.
    """
    target = ALIASES.get(name, name)
    base = target.removesuffix(FEATURES)
    path = folder.file_of(base)
    if path.name == f"{base}.safetensors" and is_file(path):  # not another folder's
        card = read_card(path)
        if card.mpp is None:
            raise TiaftError(f"{path} has no µm/px: add it again with --mpp")
        facts: dict[str, Any] = {
            "tile_size": card.tile_size,
            "mpp": card.mpp,
            "classes": card.classes,
            "multilabel": card.multilabel,
            "file": path,
        }
        if base in PROMISES:  # the file may say 0.495 where the name says 0.5
            facts["mpp"] = PROMISES[base].mpp
    elif base in PROMISES:
        promise = PROMISES[base]
        facts = {
            "tile_size": promise.tile_size,
            "mpp": promise.mpp,
            "classes": promise.classes,
            "file": path,
        }
    else:
        registered = models_of_plugins()
        found = registered.get(base) or registered.get(name)
        if found is None:
            return None
        facts = _facts_of_plugin(found)
    view = "features" if target.endswith(FEATURES) or not facts["classes"] else "classes"
    return NamedModel(name, base, view, **facts)


def models_of_plugins() -> dict[str, Registered]:
    """Return what plug-ins registered, by name; one that fails is noted on stderr, left out."""
    return collect("register_models", lambda fault: note_once(str(fault)))


def check_registered(registered: Registered) -> None:
    """Raise TiaftError, which names the plug-in, where its model may not have its name."""
    if registered.plugin == "zoo":
        return
    try:
        folder.refuse_model_name(registered.name)
    except TiaftError as error:
        raise TiaftError(f"plug-in {registered.plugin} registers a model: {error}") from error


@cache
def note_once(text: str) -> None:
    """Say something on stderr, but not again."""
    print(f"tiaft: {text}", file=sys.stderr)


def of_file(path: Path, view: str) -> NamedModel:
    """Return a model file as if it had a name: its own. `view` is "classes" or "features".

    Raises TiaftError where the file lacks what a slide needs.
    """
    card = read_card(path)
    if card.mpp is None:
        raise TiaftError(f"{path} does not say its tiles' µm/px: add it to the zoo with --mpp")
    if view == "classes" and not card.classes:
        raise TiaftError(f"{path} gives features, not classes: use it with `tiaft extract`")
    return NamedModel(
        path.name, path.stem, view, card.tile_size, card.mpp, card.classes, card.multilabel, path
    )


def _facts_of_plugin(registered: Registered) -> dict[str, Any]:
    check_registered(registered)
    return {
        "tile_size": int(registered.options["tile_size"]),
        "mpp": float(registered.options["mpp"]),
        "classes": tuple(registered.options.get("classes", ())),
        "multilabel": bool(registered.options.get("multilabel", False)),
        "load": registered.thing,
        "plugin": registered.plugin,
    }
