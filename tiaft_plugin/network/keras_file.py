"""Keras' HDF5 files and archives, read with h5py alone: their layers and arrays, no more.

Three layouts are read: whole models and weights of Keras 2 (``.h5``), weights of Keras 3
(``.weights.h5``), and Keras 3 archives (``.keras``). Such files come from strangers: links, which
can name any file of this machine, are not followed, and no array is read before its size is known.
"""

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tiaft_plugin.errors import TiaftError

MAX_ARRAY = 2**26  # numbers in one array: the largest real one is 2048 × 2048
MAX_CONFIG = 2**24  # bytes of JSON: the largest real one has some hundred thousand
NOT_WEIGHTS = {"optimizer", "optimizer_weights", "seed_generator"}  # state of training only
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
class Layer:
    """One Keras layer with weights: its arrays in Keras' order, not yet read."""

    group: str  # where it stands in the file
    name: str
    container: str  # among the layers of one container, the file's order holds
    arrays: tuple[h5py.Dataset, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The arrays' shapes, axes in Keras' order."""
        return tuple(array.shape for array in self.arrays)

    @property
    def kind(self) -> str:
        """What the layer is by its arrays: DENSE, CONV, SEPCONV, BATCHNORM or a description."""
        return kind_of(self.shapes)


def kind_of(shapes: tuple[tuple[int, ...], ...]) -> str:
    """Tell what a layer is by the shapes of its arrays."""
    kinds = {(4,): CONV, (4, 4): SEPCONV, (1, 1, 1, 1): BATCHNORM, (2, 1): DENSE}
    return kinds.get(tuple(map(len, shapes)), f"layer with arrays {list(shapes)}")


@contextmanager
def opened(path: Path) -> Iterator[tuple[h5py.File, Any]]:
    """Open a file or archive; give its HDF5 and its model configuration, None where it has none.

    Raises TiaftError for another archive; what damaged files raise is h5py's and zipfile's own.
    """
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
        if "config.json" in names and archive.getinfo("config.json").file_size > MAX_CONFIG:
            raise TiaftError("config.json in this archive is too big for Xception")
        config = json.loads(archive.read("config.json")) if "config.json" in names else None
        with archive.open("model.weights.h5") as member:
            shutil.copyfileobj(member, weights)
        with h5py.File(weights, "r") as file:
            yield file, config


def layers_of(file: h5py.File) -> list[Layer]:
    """Return the layers with weights, in the order of the file's own list or of their numbers.

    Raises TiaftError for links, for arrays that stand elsewhere or hold no floats or more than
    MAX_ARRAY numbers, and for names that no layer of Xception or Part B gives its arrays.
    """
    root = _child(file, "model_weights") if "model_weights" in set(file) else file
    layers: dict[str, dict[int, h5py.Dataset]] = {}
    for name, array in _arrays(root, "", set()):
        group, _, leaf = name.rpartition("/")
        role = _role(leaf)
        if role in layers.setdefault(group, {}):
            raise TiaftError(f"{group} holds two arrays for one place ({leaf})")
        layers[group][role] = array
    rank = _listed(root)
    found = []
    for group in sorted(layers, key=lambda group: (rank.get(group, len(rank)), _natural(group))):
        arrays = tuple(array for _, array in sorted(layers[group].items()))
        container = "" if rank else group.removesuffix("/vars").rpartition("/")[0]
        found.append(Layer(group, _name(root[group]), container, arrays))
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


def _listed(root: h5py.Group) -> dict[str, int]:
    """Return each layer's turn in the lists that Keras 2 keeps; Keras 3 keeps none."""
    groups = set(root)
    listed = [
        f"{layer}/{weight}".rpartition("/")[0]
        for layer in _names(root, "layer_names")
        if layer in groups
        for weight in _names(_child(root, layer), "weight_names")
    ]
    return {group: turn for turn, group in enumerate(dict.fromkeys(listed))}


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
