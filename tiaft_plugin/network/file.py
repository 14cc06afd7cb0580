"""One model, one safetensors file: the weights, and the card that rebuilds the network."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.card import METADATA_KEY, Card, card_of, read_card
from tiaft_plugin.network.net import Network


def save_model(net: Network, path: Path | str, *, overwrite: bool = False) -> Path:
    """Write a network and its card to a model file, atomically.

    The same model always gives the same bytes. Raises TiaftError if `path` exists and
    `overwrite` is False.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    try:
        with write_atomically(path, overwrite=overwrite) as temporary:
            save_file(tensors, temporary, metadata={METADATA_KEY: net.card.to_json()})
    except (OSError, SafetensorError) as error:
        raise TiaftError(f"{path} cannot be written: {error}") from error
    return path


def load_model(path: Path | str, device: str = "cpu") -> Network:
    """Rebuild a network from its model file, in eval mode, on `device`.

    Raises TiaftError where file, card or weights are wrong, or do not fit each other.
    """
    path = Path(path)
    read_card(path)  # refuses what is no model file without reading all of it
    try:
        content = path.read_bytes()  # once: another process may put a new file there
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, OSError, ValueError) as error:
        raise TiaftError(f"{path} cannot be read whole: {error}") from error
    card = card_of(header.get("__metadata__", {}), path)
    for number, width in enumerate(card.hidden, start=1):  # before memory is taken for them
        bias = tensors.get(f"part_b.hidden.fc{number}.bias")
        if bias is None or bias.shape != (width,):
            raise TiaftError(
                f"{path}: the card's hidden layer {number} has {width} units, the weights "
                f"{'none' if bias is None else list(bias.shape)}"
            )
    try:
        blueprint = _without_memory(card)
        if blueprint is not None:
            check_fit(blueprint, tensors, path)
        net = Network(card)
    except TiaftError as error:
        named = str(error).startswith(str(path))
        raise TiaftError(str(error) if named else f"{path}: {error}") from error
    check_fit(net, tensors, path)
    net.load_state_dict(tensors)
    try:
        return net.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # the latter where torch has no CUDA at all
        raise TiaftError(f"device {device!r} cannot be used: {first_line(error)}") from error


def _without_memory(card: Card) -> Network | None:
    """Build a network that takes no memory, whatever a stranger's card asks for.

    Returns None for the few backbones that torch cannot build so (RegNet), as long as no argument
    makes them larger than timm's own. Raises TiaftError.
    """
    try:
        with torch.device("meta"):
            return Network(card)
    except TiaftError:
        if _enlarges(list(card.backbone_args.values())):
            raise
        return None


def _enlarges(arguments: list) -> bool:
    return any(
        _enlarges(list(value))
        if isinstance(value, list | tuple)
        else isinstance(value, int | float) and abs(value) > 1
        for value in arguments
    )


def check_fit(net: Network, tensors: dict[str, torch.Tensor], path: Path | str) -> None:
    """Raise TiaftError unless `tensors` are just the network's, in name, shape and finiteness."""
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    rows = next(iter(found.get("part_b.classifier.bias", ())), len(net.card.classes))
    if rows != len(net.card.classes):
        raise TiaftError(
            f"{path}: the card names {len(net.card.classes)} classes "
            f"({', '.join(net.card.classes) or 'none'}), the classifier has {rows}"
        )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise TiaftError(
                f"{path}: card and weights do not fit: {name} should be "
                f"{wanted.get(name, 'absent')}, is {found.get(name, 'missing')}"
            )
    for name, value in tensors.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TiaftError(f"{path}: weights hold NaN or infinity ({name})")
