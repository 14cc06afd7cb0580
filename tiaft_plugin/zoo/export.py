"""Write models in the formats of others, and say how they are used there."""

from pathlib import Path
from typing import TYPE_CHECKING

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, refuse_unwritable
from tiaft_plugin.network.card import Card, is_safetensors
from tiaft_plugin.zoo.load import known, load_file
from tiaft_plugin.zoo.promises import FEATURES, PROMISES

if TYPE_CHECKING:
    from tiaft_plugin.network import Network

SUFFIXES = {
    "pth": (".pth",),
    "torchscript": (".pt", ".torchscript"),
    "pt2": (".pt2",),
    "onnx": (".onnx",),
}


def export_model(
    name: str, out: Path, to: str, *, features: bool = False, overwrite: bool = False
) -> str:
    """Write a model, by name or file, to `out`, its outputs checked; return how it is used.

    `to` is ``pth`` (weights for TIAToolbox), ``torchscript``, ``pt2`` (torch.export's) or ``onnx``.
    What is exported gives probabilities; with `features`, and where there are no classes, features.
    Raises TiaftError, and writes nothing.
    """
    if out.suffix not in SUFFIXES[to]:
        raise TiaftError(f"{out}: a file for --to {to} ends in {' or '.join(SUFFIXES[to])}")
    if not overwrite:
        refuse_existing(out)
    refuse_unwritable(out)
    net, features = _load(name, features)
    if to == "pth":
        from tiaft_plugin.zoo.pth import write_pth

        _put_in_promised_order(net)
        how = write_pth(net, out, features=features, overwrite=overwrite)
        return how + _warning_of_part_a(net.card, features) + _warning_of_stain(net.card)
    from tiaft_plugin.network.export import export_network

    difference = export_network(net, out, to, features=features, overwrite=overwrite)
    return _described(net, to, features, difference) + _warning_of_stain(net.card)


def _load(name: str, features: bool) -> tuple["Network", bool]:
    """Return a network by name or file, and whether its features are wanted."""
    if is_safetensors(Path(name)):
        from tiaft_plugin.network import load_model

        net = load_model(Path(name))
    else:
        model = known(name)
        if model.file is None:
            raise TiaftError(
                f"{name} is a model of plug-in {model.plugin}: only model files are exported"
            )
        net, features = load_file(model.base, model.file), features or model.view == "features"
    return net, features or not net.card.classes


def _put_in_promised_order(net: "Network") -> None:
    """Order classes as tiaft's names have them: a .pth names none, and a name may read it."""
    from tiaft_plugin.network import reorder_classes

    for promise in PROMISES.values():
        if promise.classes and sorted(promise.classes) == sorted(net.card.classes):
            reorder_classes(net, promise.classes)


def _described(net: "Network", to: str, features: bool, difference: float) -> str:
    """Return what a person has to know who runs the file."""
    card = net.card
    size = card.tile_size
    if features:
        gives = f"features (N, {net.feature_width})"
    else:
        kind = "labels, any number a tile" if card.multilabel else "classes"
        gives = f"probabilities (N, {len(card.classes)}) of the {kind} {', '.join(card.classes)}"
    return (
        f"takes  uint8 tiles (N, {size}, {size}, 3), RGB, {_scale(card)}; any N\n"
        f"gives  {gives}, float32\n"
        "Tiles are normalised inside: give pixels from 0 to 255 as they are. Outputs are those of "
        f"the model to {difference:.1e} (relative), on noise and on structured tiles.\n"
    )


def _scale(card: Card) -> str:
    return f"at {card.mpp:g} µm/px" if card.mpp else "of unknown µm/px"


def _warning_of_part_a(card: Card, features: bool) -> str:
    if not (features and card.hidden):
        return ""
    return (
        "These are the features of Part A, pooled, as TIAToolbox's class gives them; not those "
        f"after Part B, which NAME{FEATURES} and `--to torchscript` or `onnx --features` give.\n"
    )


def _warning_of_stain(card: Card) -> str:
    stain = card.training.get("stain")
    if not stain:
        return ""
    name = stain.get("name", stain) if isinstance(stain, dict) else stain
    return (
        f"This model was trained on stain-normalised tiles ({name}), which this file does not do: "
        "normalise tiles before it sees them.\n"
    )
