"""The network and its file: torch and timm, no slide and no TIAToolbox."""

from importlib import import_module
from typing import Any

# Resolved on first use, so that reading a card does not load torch.
_PUBLIC = {
    "Card": "card",
    "Network": "net",
    "create_network": "create",
    "init_part_a": "weights",
    "load_model": "file",
    "read_card": "card",
    "reorder_classes": "net",
    "save_model": "file",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
