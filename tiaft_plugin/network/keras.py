"""The paper authors' Keras files become networks: Xception and Part B's dense layers.

Layers are told by what they hold, matched by Keras' names where the file has them and by their
order where not, and all of them must fit: nothing in the file is left over, nothing in the network
keeps its random start.
"""

from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import DEFAULT_TILE_SIZE, KERAS_XCEPTION
from tiaft_plugin.network.card import Card, is_file
from tiaft_plugin.network.file import check_fit
from tiaft_plugin.network.keras_config import check_config
from tiaft_plugin.network.keras_file import (
    BATCHNORM,
    CONV,
    DENSE,
    SEPCONV,
    Layer,
    kind_of,
    layers_of,
    opened,
)
from tiaft_plugin.network.net import Network

POOLED_WIDTH = 2048
MAX_DENSE = 5


def read_keras(
    path: Path | str,
    classes: Sequence[str] = (),
    *,
    tile_size: int = DEFAULT_TILE_SIZE,
    mpp: float | None = 0.5,
) -> Network:
    """Make a network of a Keras file: Xception, global average pooling, dense layers (section 3.2).

    `classes` names the file's outputs in their order; a file without dense layers takes none and
    gives features only. `tile_size` is in px, `mpp` in µm/px. Pixels are taken to be scaled to
    −1…1, as keras.applications does for Xception. Where the file holds no model configuration,
    only weights, a ReLU is taken to follow every dense layer but the last.

    Raises TiaftError where the file is damaged, links elsewhere, or is not this architecture.
    """
    path = Path(path)
    if not is_file(path):
        raise TiaftError(f"{path}: no such Keras file")
    try:
        with opened(path) as (file, config):
            layers = layers_of(file)
            dense = _chain([layer for layer in layers if layer.kind == DENSE])
            check_config(config, len(dense))
            _check_classes(dense, classes)
            hidden = tuple(layer.arrays[1].shape[0] for layer in dense[:-1])
            card = Card(
                KERAS_XCEPTION, tile_size, mpp, tuple(classes), hidden, source=f"Keras, {path.name}"
            )
            net = Network(card).eval()
            tensors = _part_a(net, [layer for layer in layers if layer.kind != DENSE])
            tensors |= _part_b(dense)
    except TiaftError as error:
        raise TiaftError(f"{path}: {error}") from error
    except Exception as error:  # on damaged files h5py, zipfile and zlib each raise their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TiaftError(
            f"{path} is not a whole Keras HDF5 file ({reason}): copy or download it again"
        ) from error
    check_fit(net, tensors, path)
    net.load_state_dict(tensors)
    return net


def _chain(dense: list[Layer]) -> list[Layer]:
    """Return the dense layers in the order in which their widths, from 2048 on, fit."""
    if len(dense) > MAX_DENSE:
        raise TiaftError(f"holds {len(dense)} dense layers: Part B has up to {MAX_DENSE}")
    orders = [
        order
        for order in permutations(dense)
        if _fit(order)
        and all(
            dense.index(first) < dense.index(second)
            for first, second in combinations(order, 2)
            if first.container == second.container
        )
    ]
    if len(orders) != 1:
        found = ", ".join(f"{layer.name} {list(layer.shapes[0])}" for layer in dense)
        raise TiaftError(
            f"its dense layers ({found}) do not make one chain from Xception's {POOLED_WIDTH} "
            "pooled features"
        )
    return list(orders[0])


def _fit(dense: Sequence[Layer]) -> bool:
    """Tell whether kernels and biases of dense layers follow on each other."""
    width = POOLED_WIDTH
    for layer in dense:
        kernel, bias = layer.shapes
        if kernel != (width, *bias):
            return False
        (width,) = bias
    return True


def _check_classes(dense: list[Layer], classes: Sequence[str]) -> None:
    if not dense and classes:
        raise TiaftError(
            f"holds Xception without dense layers, so none for the {len(classes)} classes given: "
            "leave the class list out to import its features"
        )
    if dense and dense[-1].shapes[1][0] != len(classes):
        raise TiaftError(
            f"its last dense layer ({dense[-1].name}) has {dense[-1].shapes[1][0]} outputs, and "
            f"{len(classes) or 'no'} class names are given: name them all, in the file's order"
            + (", or import the file without top for features" if len(dense) == 1 else "")
        )


def _part_b(dense: list[Layer]) -> dict[str, torch.Tensor]:
    """Return Part B's tensors by their names in Network."""
    names = [f"part_b.hidden.fc{number}" for number in range(1, len(dense))]
    tensors = {}
    for name, layer in zip([*names, "part_b.classifier"], dense, strict=False):
        kernel, bias = layer.arrays
        tensors[f"{name}.weight"] = _read(kernel, (1, 0))
        tensors[f"{name}.bias"] = _read(bias, (0,))
    return tensors


def _part_a(net: Network, layers: list[Layer]) -> dict[str, torch.Tensor]:
    """Return Part A's tensors by their names in `net`."""
    state = net.state_dict()
    places = _places(net).items()
    targets = {name: _targets(kind, f"part_a.{place}") for name, (kind, place) in places}
    expected = {
        name: tuple(
            state[tensor].numpy().transpose(np.argsort(axes)).shape for tensor, axes in target
        )
        for name, target in targets.items()
    }
    # Counters of training batches have no counterpart in Keras, and inference does not use them.
    tensors = {name: n for name, n in state.items() if name.endswith("num_batches_tracked")}
    for name, layer in _matched(expected, layers).items():
        for array, (tensor, axes) in zip(layer.arrays, targets[name], strict=True):
            tensors[tensor] = _read(array, axes)
    return tensors


def _places(net: Network) -> dict[str, tuple[str, str]]:
    """Return kind and timm's place of each Keras layer of Xception, in the order of the network.

    Keras leaves the four shortcuts unnamed; here they are called shortcuts.
    """
    places = {}
    for number in (1, 2):
        places[f"block1_conv{number}"] = (CONV, f"conv{number}")
        places[f"block1_conv{number}_bn"] = (BATCHNORM, f"bn{number}")
    for number in range(1, 13):
        keras, place = f"block{number + 1}", f"block{number}"
        block = net.part_a.get_submodule(place)
        repeat = 0
        for index, module in block.get_submodule("rep").named_children():
            if isinstance(module, nn.BatchNorm2d):
                places[f"{keras}_sepconv{repeat}_bn"] = (BATCHNORM, f"{place}.rep.{index}")
            elif hasattr(module, "pointwise"):
                repeat += 1
                places[f"{keras}_sepconv{repeat}"] = (SEPCONV, f"{place}.rep.{index}")
        if block.skip is not None:
            places[f"{keras}_shortcut"] = (CONV, f"{place}.skip")
            places[f"{keras}_shortcut_bn"] = (BATCHNORM, f"{place}.skipbn")
    for number in (1, 2):
        places[f"block14_sepconv{number}"] = (SEPCONV, f"conv{number + 2}")
        places[f"block14_sepconv{number}_bn"] = (BATCHNORM, f"bn{number + 2}")
    return places


def _targets(kind: str, place: str) -> list[tuple[str, tuple[int, ...]]]:
    """Return, for each array of a Keras layer, timm's tensor and the axes that lead to it."""
    if kind == CONV:  # HWIO → OIHW
        return [(f"{place}.weight", (3, 2, 0, 1))]
    if kind == SEPCONV:  # the depthwise kernel is HWC1 in Keras, C1HW in torch
        depthwise, pointwise = f"{place}.conv1.weight", f"{place}.pointwise.weight"
        return [(depthwise, (2, 3, 0, 1)), (pointwise, (3, 2, 0, 1))]
    return [(f"{place}.{part}", (0,)) for part in ("weight", "bias", "running_mean", "running_var")]


def _matched(expected: dict[str, tuple], layers: list[Layer]) -> dict[str, Layer]:
    """Return the layer of each expected name. Raises TiaftError unless all fit and none is over."""
    matched: dict[str, Layer] = {}
    rest = []
    for layer in layers:
        if layer.name not in expected:
            rest.append(layer)
        elif matched.setdefault(layer.name, layer) is not layer:
            raise TiaftError(f"holds {layer.name} twice ({layer.group})")
    open_names = [name for name in expected if name not in matched]
    lost = [name for name in open_names if "shortcut" not in name]
    if matched and lost:
        raise TiaftError(f"lacks {_shortened(lost)} of Xception")
    _check_counts({name: expected[name] for name in open_names}, rest)
    # What has no name of its own is told by its kind and its turn, never by its number, which
    # counts on through all models that were built in one process.
    for name in open_names:
        kind = kind_of(expected[name])
        layer = next(layer for layer in rest if layer.kind == kind)
        rest.remove(layer)
        matched[name] = layer
    for name, layer in matched.items():
        if layer.shapes != expected[name]:
            raise TiaftError(
                f"{layer.group} has shapes {list(layer.shapes)}, and {name} of Xception "
                f"{list(expected[name])}"
            )
    return matched


def _check_counts(expected: dict[str, tuple], layers: list[Layer]) -> None:
    over, lost = list(layers), []
    for name, shapes in expected.items():
        layer = next((layer for layer in over if layer.shapes == shapes), None)
        if layer is None:
            lost.append(name)
        else:
            over.remove(layer)
    if len(lost) == len(expected) > len(layers):
        raise TiaftError("holds no Xception as keras.applications builds it")
    if over:
        found = _shortened([f"{layer.group} ({layer.kind})" for layer in over])
        raise TiaftError(f"Xception with dense layers has no place for {found}")
    if lost:
        raise TiaftError(f"lacks {_shortened(lost)} of Xception, or others of that shape")


def _read(array: h5py.Dataset, axes: tuple[int, ...]) -> torch.Tensor:
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite later
        values = np.asarray(array[()], dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(axes)))


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
