"""Weights as a ``.pth`` that TIAToolbox's own ``weights=`` takes, and the script they work in.

TIAToolbox has classes of its own for timm's backbones, ``TimmBackbone`` and ``TimmModel``, which
cut them off before their last child: right for some, wrong for others, so that the outputs are
compared with the network's. Neither knows hidden layers of Part B. tiaft's own names do, and take
bare weights, too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.card import Card
from tiaft_plugin.network.export import TOLERANCE, check_tiles, relative_difference
from tiaft_plugin.network.net import Network
from tiaft_plugin.zoo.promises import FEATURES, PROMISES


def write_pth(net: Network, path: Path, *, features: bool, overwrite: bool = False) -> str:
    """Write a network's weights, or with `features` Part A's, for TIAToolbox.

    Returns the script that runs them. Raises TiaftError, and writes nothing, where TIAToolbox has
    no class that gives the same outputs.
    """
    name = None if features else _name_that_takes(net.card)
    if name is not None:
        with write_atomically(path, overwrite=overwrite) as temporary:
            torch.save(net.state_dict(), temporary)
        return _script_by_name(name, net.card, path)
    _refuse_what_no_class_knows(net.card, features)
    with write_atomically(path, overwrite=overwrite) as temporary:
        try:
            model = _empty_model(net.card, features)
            torch.save(_renamed(net, model), temporary)
            outputs = _outputs(model, net, temporary)
        except Exception as error:  # timm's backbones cut short fail in any way
            raise Stopped(
                f"TIAToolbox cannot build {net.card.backbone} as this model has it "
                f"({first_line(error)}): {_INSTEAD}"
            ) from error
        _refuse_other_outputs(net, outputs, features)
    return _script_by_class(net.card, path, features)


_INSTEAD = "`--to torchscript` and `--to onnx` export the whole network"


def _name_that_takes(card: Card) -> str | None:
    """Return tiaft's name whose network is this one but for its weights, on any machine."""
    decisive = ("backbone", "backbone_args", "tile_size", "classes", "hidden", "mean", "std")
    for name, promise in PROMISES.items():
        same = all(getattr(card, part) == getattr(promise.card(), part) for part in decisive)
        if same and promise.classes and not card.multilabel and "stain" not in card.training:
            return name
    return None


def _refuse_what_no_class_knows(card: Card, features: bool) -> None:
    if features or not card.classes:
        return
    if card.hidden:
        raise TiaftError(
            "TIAToolbox has no class for a classifier with hidden layers: --features exports Part "
            f"A, {_INSTEAD}, and a script that imports tiaft_plugin takes the model file itself"
        )
    if card.multilabel:
        raise TiaftError(f"TIAToolbox's classes give one class a tile, not labels: {_INSTEAD}")


def _empty_model(card: Card, features: bool) -> Any:
    from tiatoolbox.models.architecture.vanilla import TimmBackbone, TimmModel

    with torch.random.fork_rng(devices=[]):
        if features or not card.classes:
            return TimmBackbone(card.backbone, pretrained=False)
        return TimmModel(card.backbone, len(card.classes), pretrained=False)


def _renamed(net: Network, model: Any) -> dict[str, torch.Tensor]:
    """Return the network's weights by the names that TIAToolbox's class gives them."""
    import timm

    children = [name for name, _ in timm.create_model(net.card.backbone).named_children()]
    weights = net.state_dict()
    renamed = {}
    for name in model.state_dict():
        part, _, rest = name.partition(".")
        if part == "feat_extract":
            number, _, inner = rest.partition(".")
            renamed[name] = weights[f"part_a.{children[int(number)]}.{inner}"]
        else:
            renamed[name] = weights[f"part_b.{name}"]
    return renamed


def _outputs(model: Any, net: Network, path: Path) -> np.ndarray:
    """Return the outputs of TIAToolbox's class with the weights in `path`, on our tiles."""
    from tiatoolbox.models.models_abc import load_torch_model

    model = load_torch_model(model, path)
    tiles = torch.from_numpy(check_tiles(net.card.tile_size))
    outputs = model.infer_batch(model, net.normalise(tiles).permute(0, 2, 3, 1), device="cpu")
    return outputs[0] if isinstance(outputs, list) else outputs


def _refuse_other_outputs(net: Network, outputs: np.ndarray, features: bool) -> None:
    with torch.inference_mode():
        of = net.pooled if features or not net.card.classes else net.probabilities
        difference = relative_difference(outputs, of(check_tiles(net.card.tile_size)).numpy())
    if not difference <= TOLERANCE:
        raise Stopped(
            f"TIAToolbox's class gives other outputs with {net.card.backbone} than the network "
            f"(relative difference {difference:.1e}, {TOLERANCE:g} is allowed): nothing is "
            f"written; {_INSTEAD}"
        )


def _script_by_name(name: str, card: Card, path: Path) -> str:
    file = _quoted(path.name)
    return f"""\
import tiaft_plugin
from tiatoolbox.models import DeepFeatureExtractor, PatchPredictor

predictor = PatchPredictor({_quoted(name)}, weights={file})  # {len(card.classes)} classes
extractor = DeepFeatureExtractor({_quoted(name + FEATURES)}, weights={file})
predictor.run(["slide.svs"], patch_mode=False, save_dir="predictions")
extractor.run(["slide.svs"], patch_mode=False, save_dir="features")
"""


def _script_by_class(card: Card, path: Path, features: bool) -> str:
    if features or not card.classes:
        engine, model, classes = "DeepFeatureExtractor", "TimmBackbone", ""
    else:
        engine, model, classes = "PatchPredictor", "TimmModel", f"{len(card.classes)}, "
    named = f"model.class_dict = {dict(enumerate(card.classes))!r}\n" if classes else ""
    mpp = repr(card.mpp) if card.mpp else "MPP"  # which is no number until somebody fills it in
    return f"""\
import numpy as np
from tiatoolbox.models import {engine}
from tiatoolbox.models.architecture.vanilla import {model}


def normalise(tile):
    return (tile / 255 - np.array({card.mean!r})) / np.array({card.std!r})


model = {model}({_quoted(card.backbone)}, {classes}pretrained=False)
model.preproc_func = normalise
{named}engine = {engine}(model, weights={_quoted(path.name)})
engine.run(
    ["slide.svs"],
    patch_mode=False,
    save_dir="out",
    patch_input_shape=({card.tile_size}, {card.tile_size}),
    stride_shape=({card.tile_size}, {card.tile_size}),
    input_resolutions=[{{"units": "mpp", "resolution": {mpp}}}],
)
"""


def _quoted(text: str) -> str:
    """Return a text as Python has it, in the quotes that formatters prefer."""
    return json.dumps(text, ensure_ascii=False)
