"""Devices by name."""

import torch

from tiaft_plugin.errors import TiaftError, first_line


def pick_device(name: str) -> torch.device:
    """Return the device of a name: ``auto`` is a CUDA GPU if there is one. Raises TiaftError."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TiaftError(
            f"there is no device {name} here ({first_line(error)}): pass --device cpu"
        ) from error
    return device
