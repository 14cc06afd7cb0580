"""Two-stage fine-tuned tile models for TIAToolbox, and a bridge to QuPath.

Importing this package gives TIAToolbox's engines new model names; nothing heavy is loaded.
"""

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["TiaftError", "__version__", "hookimpl"]
