"""The paper authors' Keras files, read with h5py alone: Xception and Part B's dense layers.

Three layouts are read: whole models and weights of Keras 2 (``.h5``), weights of Keras 3
(``.weights.h5``), and Keras 3 archives (``.keras``). Layers are told by what they hold, matched by
Keras' names where the file has them and by their order where not, and all of them must fit:
nothing in the file is left over, nothing in the network keeps its random start.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import DEFAULT_TILE_SIZE, KERAS_BATCHNORM_EPS, KERAS_XCEPTION
from tiaft_plugin.network.card import Card, is_file
from tiaft_plugin.network.file import check_fit
from tiaft_plugin.network.net import Network

POOLED_WIDTH = 2048
MAX_ARRAY = 2**26  # numbers in one array: the largest real one is 2048 × 2048
MAX_DENSE = 5
NOT_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}  # state of training only
# What stands between dense layers and does nothing outside training.
INACTIVE = {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "InputLayer"}
DENSE, CONV, SEPCONV, BATCHNORM = "dense", "convolution", "separable convolution", "BatchNorm"

# Where each array stands in Keras' own order within its layer; Keras 1's names among them, whose
# running_std holds the variance all the same. Keras 3 has numbers for names.
_ROLES = {
    "kernel": 0, "W": 0, "depthwise_kernel": 0, "gamma": 0,
    "bias": 1, "b": 1, "pointwise_kernel": 1, "beta": 1,
    "moving_mean": 2, "running_mean": 2, "moving_variance": 3, "running_std": 3,
}  # fmt: skip
_ROLE = re.compile(rf"(?:.*?_)??({'|'.join(sorted(_ROLES, key=len, reverse=True))})(?:_\d+)?")
# TensorFlow 1 added a number to the name of a second Xception in one process.
_BLOCK_LAYER = re.compile(r"(block\d+_(?:sep)?conv\d(?:_bn)?)(?:_\d+)?")


@dataclass(frozen=True)
class _Layer:
    """One Keras layer with weights: its arrays in Keras' order, not yet read."""

    group: str  # where it stands in the file
    name: str
    container: str  # among the layers of one container, the file's order holds
    arrays: tuple[h5py.Dataset, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(array.shape for array in self.arrays)

    @property
    def kind(self) -> str:
        kinds = {(4,): CONV, (4, 4): SEPCONV, (1, 1, 1, 1): BATCHNORM, (2, 1): DENSE}
        return kinds.get(tuple(map(len, self.shapes)), f"layer with arrays {list(self.shapes)}")


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
        with _opened(path) as (file, config):
            layers = _layers(file)
            dense = _chain([layer for layer in layers if layer.kind == DENSE])
            _check_config(config, len(dense))
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
    # What h5py, zlib and zipfile raise on damaged files is not documented, and is all of these.
    except (
        OSError, ValueError, KeyError, RuntimeError, TypeError, EOFError, MemoryError,
        RecursionError, NotImplementedError, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TiaftError(
            f"{path} is not a whole Keras HDF5 file ({reason}): copy or download it again"
        ) from error
    check_fit(net, tensors, path)
    net.load_state_dict(tensors)
    return net


@contextmanager
def _opened(path: Path) -> Iterator[tuple[h5py.File, Any]]:
    """Open a file or archive; give its HDF5 and its model configuration, None where it has none."""
    if not zipfile.is_zipfile(path):
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
            yield file, None if text is None else json.loads(text)
        return
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as weights:
        names = archive.namelist()
        if "model.weights.h5" not in names:
            raise TiaftError("this archive holds no model.weights.h5, so it is no .keras file")
        # Weights and two optimiser moments; a member that claims more is not Xception.
        if archive.getinfo("model.weights.h5").file_size > 16 * MAX_ARRAY:
            raise TiaftError("model.weights.h5 in this archive is too big for Xception")
        config = json.loads(archive.read("config.json")) if "config.json" in names else None
        with archive.open("model.weights.h5") as member:
            shutil.copyfileobj(member, weights)
        with h5py.File(weights, "r") as file:
            yield file, config


def _layers(file: h5py.File) -> list[_Layer]:
    """Return the layers with weights, in the order of the file's own list or of their numbers."""
    root = _child(file, "model_weights") if "model_weights" in set(file) else file
    groups = set(root)
    listed = [
        f"{layer}/{weight}"
        for layer in _names(root, "layer_names")
        if layer in groups
        for weight in _names(_child(root, layer), "weight_names")
    ]
    rank = {name: number for number, name in enumerate(listed)}
    layers: dict[str, dict[int, h5py.Dataset]] = {}
    places: dict[str, tuple[int, list]] = {}
    for name, array in _arrays(root, "", set()):
        group, _, leaf = name.rpartition("/")
        role = _role(leaf)
        if role in layers.setdefault(group, {}):
            raise TiaftError(f"{group} holds two arrays for one place ({leaf})")
        layers[group][role] = array
        places.setdefault(group, (rank.get(name, len(rank)), _natural(group)))
    found = []
    for group in sorted(layers, key=places.__getitem__):
        arrays = tuple(array for _, array in sorted(layers[group].items()))
        container = "" if listed else group.removesuffix("/vars").rpartition("/")[0]
        found.append(_Layer(group, _name(root[group]), container, arrays))
    return found


def _arrays(group: h5py.Group, prefix: str, seen: set[int]) -> Iterator[tuple[str, h5py.Dataset]]:
    """Give the path and dataset of every array of weights below `group`."""
    for name in group:
        if name in NOT_WEIGHTS:
            continue
        item = _child(group, name)
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            raise TiaftError(f"{prefix}{name} stands in the file twice")
        seen.add(address)
        if isinstance(item, h5py.Group):
            yield from _arrays(item, f"{prefix}{name}/", seen)
        else:
            _check_array(item, prefix + name)
            yield prefix + name, item


def _child(group: h5py.Group, name: str | bytes) -> Any:
    if not isinstance(name, str):  # h5py's way to give what is not UTF-8
        raise TiaftError(f"{name!r} is a damaged name")
    # Links can name any file of this machine, and even `name in group` follows them.
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise TiaftError(f"{name} is a link, maybe to another file, and is not followed")
    return group[name]


def _check_array(array: Any, name: str) -> None:
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise TiaftError(f"{name} is not an array that stands in this file")
    if array.dtype.kind != "f":
        raise TiaftError(f"{name} holds {array.dtype}, not the floats of weights")
    if array.size is None or array.size > MAX_ARRAY:
        raise TiaftError(f"{name} has shape {array.shape}: too big for Xception")


def _names(group: h5py.Group, attribute: str) -> list[str]:
    """Return a list of names that Keras 2 keeps in an attribute, or in several if it is long."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs:
        parts.append(f"{attribute}{len(parts)}")
    values = [value for part in parts for value in np.ravel(group.attrs[part])]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _role(leaf: str) -> int:
    """Return an array's place in its layer, from a name as ``0``, ``gamma:0``, ``conv2d_1_W:0``."""
    name = leaf.partition(":")[0]
    if name.isdecimal():
        return int(name)
    match = _ROLE.fullmatch(name)
    if not match:
        raise TiaftError(f"{leaf} is none of the arrays of Xception or a dense layer")
    return _ROLES[match[1]]


def _name(group: h5py.Group) -> str:
    """Return a layer's name: the one Keras 3 noted beside its arrays, or else its group's."""
    noted = group.attrs.get("name", "")
    group_name = group.name.removesuffix("/vars").rpartition("/")[2]
    name = noted if isinstance(noted, str) and noted else group_name
    match = _BLOCK_LAYER.fullmatch(name)
    return match[1] if match else name


def _natural(text: str) -> list:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def _chain(dense: list[_Layer]) -> list[_Layer]:
    """Return the dense layers in the order in which their widths, from 2048 on, fit."""
    if len(dense) > MAX_DENSE:
        raise TiaftError(f"holds {len(dense)} dense layers: Part B has up to {MAX_DENSE}")

    orders = [
        order
        for order in permutations(dense)
        if _fit([layer.shapes for layer in order])
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


def _fit(shapes: list[tuple]) -> bool:
    """Tell whether kernels and biases of dense layers follow on each other."""
    width = POOLED_WIDTH
    for kernel, bias in shapes:
        if kernel[0] != width or kernel[1] != bias[0]:
            return False
        width = kernel[1]
    return True


def _check_classes(dense: list[_Layer], classes: Sequence[str]) -> None:
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


def _part_b(dense: list[_Layer]) -> dict[str, torch.Tensor]:
    names = [f"part_b.hidden.fc{number}" for number in range(1, len(dense))]
    tensors = {}
    for name, layer in zip([*names, "part_b.classifier"][: len(dense)], dense, strict=True):
        tensors[f"{name}.weight"] = _read(layer.arrays[0], (1, 0))
        tensors[f"{name}.bias"] = _read(layer.arrays[1], (0,))
    return tensors


def _part_a(net: Network, layers: list[_Layer]) -> dict[str, torch.Tensor]:
    """Return Part A's tensors by their names in `net`."""
    state = net.state_dict()
    counters = {name: n for name, n in state.items() if name.endswith("num_batches_tracked")}
    places = _places(net).items()
    targets = {name: _targets(kind, f"part_a.{place}") for name, (kind, place) in places}
    expected = {
        name: tuple(tuple(state[tensor].permute(_inverse(axes)).shape) for tensor, axes in target)
        for name, target in targets.items()
    }
    tensors = dict(counters)
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


def _matched(expected: dict[str, tuple], layers: list[_Layer]) -> dict[str, _Layer]:
    """Return the layer of each expected name. Raises TiaftError unless all fit and none is over."""
    matched: dict[str, _Layer] = {}
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
        ranks = tuple(map(len, expected[name]))
        layer = next(layer for layer in rest if tuple(map(len, layer.shapes)) == ranks)
        rest.remove(layer)
        matched[name] = layer
    for name, layer in matched.items():
        if layer.shapes != expected[name]:
            raise TiaftError(
                f"{layer.group} has shapes {list(layer.shapes)}, and {name} of Xception "
                f"{list(expected[name])}"
            )
    return matched


def _check_counts(expected: dict[str, tuple], layers: list[_Layer]) -> None:
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


def _check_config(config: Any, found_dense: int) -> None:
    """Raise TiaftError where the model's configuration computes something else than Network."""
    if config is None:
        return
    layers = list(_config_layers(config))
    dense = [number for number, (kind, _) in enumerate(layers) if kind == "Dense"]
    for kind, values in layers:
        if kind in ("GlobalMaxPooling2D", "Flatten"):
            raise TiaftError(f"its pooling is {kind}: only global average pooling is read")
        if kind == "BatchNormalization" and values.get("epsilon") != KERAS_BATCHNORM_EPS:
            raise TiaftError(f"a BatchNorm's epsilon is {values.get('epsilon')}, not Xception's")
        if kind == "Rescaling" and not _is_standard(values.get("scale"), values.get("offset")):
            raise TiaftError("its Rescaling layer does not scale pixels to −1…1, as Xception's do")
    if len(dense) != found_dense:
        raise TiaftError(f"has {len(dense)} dense layers, and holds weights of {found_dense}")
    for number, end in pairwise([*dense, len(layers)]):
        found = [_activation(*layer) for layer in layers[number:end]]
        found = [name for name in found if name != "linear"]
        wanted = [["relu"]] if number != dense[-1] else [[], ["softmax"]]
        if found not in wanted:
            raise TiaftError(
                f"its dense layer {layers[number][1].get('name')} is followed by "
                f"{' and '.join(found) or 'no activation'}, not by "
                f"{'ReLU' if number != dense[-1] else 'softmax'}: this is another Part B"
            )


def _config_layers(config: Any) -> Iterator[tuple[str, dict]]:
    """Give class name and settings of every layer of a model configuration, nested ones too."""
    values = config.get("config") if isinstance(config, dict) else None
    inner = values.get("layers") if isinstance(values, dict) else values
    if isinstance(inner, list):  # before Keras 2.2.3 a Sequential was a bare list
        for layer in inner:
            yield from _config_layers(layer)
    elif isinstance(values, dict):
        yield str(config.get("class_name")), values


def _activation(kind: str, values: dict) -> str:
    """Return what a layer of Part B does to its numbers: ``relu``, ``softmax``, …, ``linear``."""
    if kind in ("Dense", "Activation"):
        activation = values.get("activation", "linear")
        if isinstance(activation, dict):  # serialised as an object
            activation = activation.get("config")
        return str(activation)
    if kind == "ReLU":
        changed = any(values.get(key) for key in ("max_value", "negative_slope", "threshold"))
        return "a bounded or leaky ReLU" if changed else "relu"
    if kind in INACTIVE:
        return "linear"
    return "softmax" if kind == "Softmax" else kind


def _is_standard(scale: Any, offset: Any) -> bool:
    numbers = isinstance(scale, int | float) and isinstance(offset, int | float)
    return numbers and abs(scale * 127.5 - 1) < 1e-6 and abs(offset + 1) < 1e-6


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.argsort(axes))


def _read(array: h5py.Dataset, axes: tuple[int, ...]) -> torch.Tensor:
    with np.errstate(over="ignore"):  # what overflows float32 is refused as infinite later
        values = np.asarray(array[()], dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(axes)))


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
