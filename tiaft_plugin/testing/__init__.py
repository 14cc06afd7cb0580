"""What registration promises, verified: for the tests of plug-ins, and for models when they load.

Each function returns nothing where all is well and raises TiaftError, which names the fault,
where it is not, as scikit-learn's ``check_estimator`` does.
"""

from importlib import import_module
from typing import Any

# Resolved on first use: the zoo checks models, and must not load the fine-tuner for that.
_PUBLIC = {
    "check_finetuner": "finetuners",
    "check_model": "models",
    "check_probe": "probes",
    "check_sink": "sinks",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
