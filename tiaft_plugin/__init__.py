"""Two-stage fine-tuned tile models for TIAToolbox, and a bridge to QuPath.

Importing this package gives TIAToolbox's engines new model names; nothing heavy is loaded.
"""

from typing import Any

from tiaft_plugin.errors import SlidesFailed, TiaftError
from tiaft_plugin.hookspecs import hookimpl
from tiaft_plugin.zoo.registry import install

__version__ = "0.1.0"
__all__ = [
    "FeatureExtractor",
    "SlidesFailed",
    "TiaftError",
    "TilePredictor",
    "__version__",
    "hookimpl",
]

install()


def __getattr__(name: str) -> Any:
    if name in ("FeatureExtractor", "TilePredictor"):  # on first use: they load torch
        from tiaft_plugin.engine import extractor

        return getattr(extractor, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
