"""What a Keras model's configuration must not say, lest the import compute something else."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network.backbone import KERAS_BATCHNORM_EPS

# What stands between dense layers and does nothing outside training.
INACTIVE = {"AlphaDropout", "Dropout", "GaussianDropout", "GaussianNoise", "InputLayer"}


def check_config(config: Any, found_dense: int) -> None:
    """Raise TiaftError where a model's configuration computes something else than Network.

    `config` is the parsed JSON, None where the file has none; `found_dense` is the number of
    dense layers whose weights the file holds.
    """
    if config is None:
        return
    layers = list(_layers(config))
    for kind, values in layers:
        _check_part_a(kind, values)
    dense = [number for number, (kind, _) in enumerate(layers) if kind == "Dense"]
    if len(dense) != found_dense:
        raise TiaftError(f"has {len(dense)} dense layers, and holds weights of {found_dense}")
    for number, end in pairwise([*dense, len(layers)]):
        last = number == dense[-1]
        activations = [_activation(*layer) for layer in layers[number:end]]
        found = [name for name in activations if name != "linear"]
        if found not in ([[], ["softmax"]] if last else [["relu"]]):
            raise TiaftError(
                f"its dense layer {layers[number][1].get('name')} is followed by "
                f"{' and '.join(found) or 'no activation'}, not by "
                f"{'softmax' if last else 'ReLU'}: this is another Part B"
            )


def _layers(config: Any) -> Iterator[tuple[str, dict]]:
    """Give class name and settings of every layer of a model configuration, nested ones too."""
    values = config.get("config") if isinstance(config, dict) else None
    inner = values.get("layers") if isinstance(values, dict) else values
    if isinstance(inner, list):  # before Keras 2.2.3 a Sequential was a bare list
        for layer in inner:
            yield from _layers(layer)
    elif isinstance(values, dict):
        yield str(config.get("class_name")), values


def _check_part_a(kind: str, values: dict) -> None:
    if kind in ("GlobalMaxPooling2D", "Flatten"):
        raise TiaftError(f"its pooling is {kind}: only global average pooling is read")
    if kind == "BatchNormalization" and values.get("epsilon") != KERAS_BATCHNORM_EPS:
        raise TiaftError(f"a BatchNorm's epsilon is {values.get('epsilon')}, not Xception's")
    if kind == "Rescaling" and not _is_standard(values.get("scale"), values.get("offset")):
        raise TiaftError("its Rescaling layer does not scale pixels to −1…1, as Xception's do")


def _is_standard(scale: Any, offset: Any) -> bool:
    numbers = isinstance(scale, int | float) and isinstance(offset, int | float)
    return numbers and abs(scale * 127.5 - 1) < 1e-6 and abs(offset + 1) < 1e-6


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
