"""One model, one safetensors file: the weights, and the card that rebuilds the network."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.card import METADATA_KEY, read_card
from tiaft_plugin.network.net import Network


def save_model(net: Network, path: Path | str, *, overwrite: bool = False) -> Path:
    """Write a network and its card to a model file, atomically. The same model gives the same bytes.

    Raises TiaftError if `path` exists and `overwrite` is False.
    """
    path = Path(path)
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with write_atomically(path, overwrite=overwrite) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: net.card.to_json()})
    return path


def load_model(path: Path | str, device: str = "cpu") -> Network:
    """Rebuild a network from its model file, in eval mode, on `device`.

    Raises TiaftError where file, card or weights are wrong, or do not fit each other.
    """
    card = read_card(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise TiaftError(f"{path} cannot be read whole: {error}") from error
    try:
        net = Network(card)
    except TiaftError as error:
        raise TiaftError(f"{path}: {error}") from error
    check_fit(net, tensors, path)
    net.load_state_dict(tensors)
    return net.to(device).eval()


def check_fit(net: Network, tensors: dict[str, torch.Tensor], path: Path | str) -> None:
    """Raise TiaftError unless `tensors` are just the network's, in name, shape and finiteness."""
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    rows = found.get("part_b.classifier.weight", (len(net.card.classes),))[0]
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
