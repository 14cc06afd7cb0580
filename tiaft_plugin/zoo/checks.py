"""Whether a tile model can be trusted with any batch of tiles."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, reason

# Largest difference of one tile's outputs between batches, relative to the largest output.
# Convolutions choose other algorithms for other batches, which costs some of the last bits.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}


def check_model(
    model: Any,
    *,
    tile_size: int | None = None,
    classes: Sequence[str] = (),
    multilabel: bool = False,
) -> None:
    """Raise TiaftError unless a tile model can be trusted with any batch of tiles.

    `model` is called with uint8 tiles (N, tile_size, tile_size, 3), a tensor on its device, and
    has to return one row a tile, floating and finite: logits (N, C) where `classes` are named,
    features (N, D) where not; with `multilabel` a tile has any number of the classes. A
    ``tiaft_plugin.network.Network`` brings all this itself.

    Caught are lost rows, outputs that depend on the batch or change from call to call, wrong
    shapes, dtypes and class counts, NaN, probabilities instead of logits, the same output for
    every tile, a part left in training mode, and a changed input. Four forward passes, 11 tiles.
    """
    card = getattr(model, "card", None)
    if card is not None:
        tile_size, classes = tile_size or card.tile_size, classes or card.classes
        multilabel = card.multilabel
    if not isinstance(tile_size, int) or tile_size < 1:
        raise TiaftError(f"tile_size is {tile_size!r}: the side of a tile in pixels is needed")
    _check_class_names(classes, multilabel)
    _check_eval_mode(model)
    forward = model.features if card is not None and not card.classes else model
    tiles = _different_tiles(5, tile_size)
    whole = _outputs(forward, model, tiles, classes)
    if multilabel and card is None:
        _refuse_sigmoid(whole)
    if bool((whole == whole[:1]).all()):
        raise TiaftError("the model gives the same output for every tile: it ignores its input")
    for order in ([4, 0, 2], [3, 1], [2]):
        rows = _outputs(forward, model, tiles[order], classes)
        if not _close(rows, whole[order]):
            again = _outputs(forward, model, tiles, classes)
            raise TiaftError(_unsteady(len(order), changed=not _close(again, whole)))


def _check_class_names(classes: Sequence[str], multilabel: bool) -> None:
    if isinstance(classes, str) or not all(isinstance(name, str) and name for name in classes):
        raise TiaftError(f"classes are {classes!r}: a sequence of names is needed")
    if multilabel and not classes:
        raise TiaftError("multilabel needs classes, the names of the labels")
    if (len(classes) == 1 and not multilabel) or len(set(classes)) != len(classes):
        raise TiaftError(f"classes are {list(classes)!r}: two or more different names are needed")


def _check_eval_mode(model: Any) -> None:
    parts = model.named_modules() if hasattr(model, "named_modules") else ()
    training = [name or type(part).__name__ for name, part in parts if part.training]
    if training:
        raise TiaftError(
            f"the model is in training mode ({training[0]}): load() has to end with model.eval()"
        )


def _different_tiles(count: int, size: int) -> np.ndarray:
    """Return tiles (count, size, size, 3) uint8, each of its own colour and contrast."""
    rng = np.random.default_rng(0)
    colour = rng.integers(60, 196, (count, 1, 1, 3))
    contrast = np.linspace(10, 60, count).reshape(-1, 1, 1, 1)
    noise = rng.uniform(-1, 1, (count, size, size, 3)) * contrast
    return (colour + noise).clip(0, 255).astype(np.uint8)


def _outputs(
    forward: Callable[..., Any], model: Any, tiles: np.ndarray, classes: Sequence[str]
) -> Any:
    """Call a model with some tiles; return its outputs (N, C or D) once they have been checked."""
    import torch

    given = torch.from_numpy(tiles.copy()).to(_device_of(model))
    try:
        with torch.inference_mode():
            outputs = forward(given)
    except TiaftError:
        raise
    except Exception as error:
        raise TiaftError(
            f"the model fails on uint8 tiles {tiles.shape}: {reason(error)}"
        ) from error
    if not np.array_equal(given.cpu().numpy(), tiles):
        raise TiaftError("the model changes its input in place: let it work on a copy")
    if not isinstance(outputs, torch.Tensor):
        raise TiaftError(f"the model returns a {type(outputs).__name__}, not one tensor (N, …)")
    fault = _fault_of(outputs, len(tiles), classes)
    if fault:
        raise TiaftError(fault)
    return outputs.clone()


def _device_of(model: Any) -> Any:
    for kind in ("parameters", "buffers"):
        for tensor in getattr(model, kind, tuple)():
            return tensor.device
    return "cpu"


def _fault_of(outputs: Any, count: int, classes: Sequence[str]) -> str:
    """Return what is wrong with a batch's outputs, or an empty string."""
    shape = tuple(outputs.shape)
    if not outputs.is_floating_point():
        return f"the model's outputs are {_dtype(outputs)}: floating-point numbers are needed"
    if len(shape) != 2 or 0 in shape:
        return f"the model's outputs have shape {shape}: (N, C) logits or (N, D) features expected"
    if shape[0] != count:
        return f"the model returns {shape[0]} rows for {count} tiles"
    if classes and shape[1] != len(classes):
        return f"the model gives {shape[1]} numbers a tile, and {len(classes)} classes are named"
    if not outputs.isfinite().all():
        return "the model's outputs hold NaN or infinity"
    sums = outputs.double().sum(dim=1)
    if classes and bool((outputs >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        return "the model gives probabilities: return the logits, what goes into the softmax"
    return ""


def _refuse_sigmoid(outputs: Any) -> None:
    """Raise TiaftError for what look like probabilities of labels: a second sigmoid gives all 0.5.

    Logits of tiles as different as these do not all lie there, unless there is one label only.
    """
    if outputs.shape[1] > 1 and bool(((outputs >= 0) & (outputs <= 1)).all()):
        raise TiaftError(
            "the model's outputs all lie between 0 and 1, as probabilities do: return the logits, "
            "what goes into the sigmoid"
        )


def _close(rows: Any, expected: Any) -> bool:
    scale = max(float(expected.abs().max()), 1e-12)
    difference = float((rows.double() - expected.double()).abs().max())
    return difference <= TOLERANCE.get(_dtype(rows), 1e-4) * scale


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unsteady(count: int, changed: bool) -> str:
    if changed:
        return (
            "the model gives other outputs for the same tiles when called again: "
            "randomness or a state that changes is left in it"
        )
    return (
        f"the model's outputs depend on the batch: {count} of 5 tiles, given in another batch or "
        "order, get other outputs"
    )
