"""Two-stage fine-tuned tile models for TIAToolbox, and a bridge to QuPath.

Importing this package gives TIAToolbox's engines new model names; nothing heavy is loaded.
"""

from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.hookspecs import hookimpl
from tiaft_plugin.zoo.registry import install

__version__ = "0.1.0"
__all__ = ["FeatureExtractor", "TiaftError", "__version__", "hookimpl"]

install()


def __getattr__(name: str) -> Any:
    if name == "FeatureExtractor":  # on first use: it loads torch
        from tiaft_plugin.engine.extractor import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
