"""Build the network that a name stands for, from its file, another file, or a plug-in."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiaft_plugin.errors import TiaftError, first_line, reason
from tiaft_plugin.files import sha256_of
from tiaft_plugin.network.card import has_card, read_card
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.zoo.folder import model_folder
from tiaft_plugin.zoo.names import NamedModel, find
from tiaft_plugin.zoo.promises import PROMISES, same_scale

if TYPE_CHECKING:
    from torch import nn

    from tiaft_plugin.network import Network


def load_file(name: str, path: Path) -> "Network":
    """Load the file behind one of tiaft's names. Raises TiaftError with the remedy without one."""
    from tiaft_plugin.network import load_model

    if not path.is_file():
        raise no_weights(name)
    net = load_model(path)
    if name in PROMISES:
        PROMISES[name].check(net.card)
        _in_promised_order(net, name)
    return net


def load_named(model: NamedModel, weights: Path | None = None) -> "nn.Module":
    """Load the network of a name, with its own weights or with those of the file `weights`.

    A plug-in's model is checked (``tiaft_plugin.testing.check_model``) before it is handed out.
    """
    if model.load is not None:
        return _from_plugin(model, weights)
    if weights is None:
        assert model.file is not None
        return load_file(model.base, model.file)
    return _with_weights(model, weights)


def identity(model: NamedModel, net: "nn.Module", weights: Path | None = None) -> str:
    """Return the SHA-256 of a model's file, or of `weights`, which it was loaded from instead.

    For a plug-in's model it is that of the plug-in, its version, the model's name and the weights
    of `net`: its code is not in them.
    """
    if model.file is not None:
        return sha256_of(weights or model.file)
    from tiaft_plugin.network.weights import sha256_of_weights

    source = plugin_manager().sources.get(model.plugin, "")
    parts = (model.plugin, source, model.base, sha256_of_weights(net))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def no_weights(name: str) -> TiaftError:
    """The error for a name that no file stands behind."""
    promise = PROMISES.get(name)
    remedy = f"{promise.remedy}, or " if promise else ""
    return TiaftError(
        f"{name} has no weights in {model_folder()}: {remedy}add a model file with "
        f"`tiaft models add {name} SOURCE`"
    )


def known(name: str) -> NamedModel:
    """Return what a name stands for. Raises TiaftError for an unknown one."""
    model = find(name)
    if model is None:
        raise unknown(name)
    return model


def unknown(name: str) -> TiaftError:
    """The error for a name that nobody has."""
    return TiaftError(f"no model {name!r}: `tiaft models list` shows those there are")


def _in_promised_order(net: "Network", name: str) -> None:
    from tiaft_plugin.network import reorder_classes

    if PROMISES[name].classes:
        reorder_classes(net, PROMISES[name].classes)


def _with_weights(model: NamedModel, weights: Path) -> "Network":
    from tiaft_plugin.network import load_model

    if not weights.is_file():
        raise TiaftError(f"weights={weights}: no such file")
    if not has_card(weights):
        return _with_bare_weights(model, weights)
    net = load_model(weights)
    try:
        if model.base in PROMISES:
            PROMISES[model.base].check(net.card)
            _in_promised_order(net, model.base)
        elif (
            net.card.classes != model.classes
            or net.card.multilabel != model.multilabel
            or net.card.tile_size != model.tile_size
            or not same_scale(net.card.mpp, model.mpp)
        ):
            raise TiaftError(
                f"other classes, tile size or µm/px than {model.base}: give it a name of its own"
            )
    except TiaftError as error:
        raise TiaftError(f"weights={weights}: {error}") from error
    return net


def _with_bare_weights(model: NamedModel, weights: Path) -> "Network":
    """Load weights that have no card into the network that the name has or promises."""
    from tiaft_plugin.network import Network
    from tiaft_plugin.network.file import check_fit
    from tiaft_plugin.network.weights import read_tensors

    if model.file is not None and model.file.is_file():
        card = read_card(model.file)
    else:
        card = PROMISES[model.base].card()
    net = Network(card)
    tensors = read_tensors(weights)
    check_fit(net, tensors, weights)
    net.load_state_dict(tensors)
    return net.eval()


def _from_plugin(model: NamedModel, weights: Path | None) -> "nn.Module":
    from tiaft_plugin.zoo.checks import check_model

    assert model.load is not None
    whose = f"plug-in {model.plugin}, model {model.base}"
    try:
        net: Any = model.load().eval()
    except TiaftError as error:
        raise TiaftError(f"{whose}: {error}") from error
    except Exception as error:
        raise TiaftError(f"{whose}: its load() failed: {reason(error)}") from error
    if weights is not None:
        from tiaft_plugin.network.weights import read_tensors

        try:
            net.load_state_dict(read_tensors(weights))
        except RuntimeError as error:
            raise TiaftError(
                f"weights={weights} do not fit {model.base}: {first_line(error)}"
            ) from error
    try:
        check_model(
            net, tile_size=model.tile_size, classes=model.classes, multilabel=model.multilabel
        )
    except TiaftError as error:
        raise TiaftError(f"{whose}: {error}") from error
    return net
