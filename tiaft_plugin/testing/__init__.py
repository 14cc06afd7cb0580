"""What registration promises, verified: for the tests of plug-ins, and for models when they load.

Each function returns nothing where all is well and raises TiaftError, which names the fault,
where it is not, as scikit-learn's ``check_estimator`` does.
"""

from importlib import import_module
from typing import Any

# Resolved on first use: a plug-in with a sink needs no fine-tuner.
_PUBLIC = {
    "check_finetuner": "testing.finetuners",
    "check_model": "zoo.checks",
    "check_probe": "testing.probes",
    "check_sink": "testing.sinks",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tiaft_plugin.{_PUBLIC[name]}"), name)
