"""What a stage needs to go on after an interruption, in one file, written atomically.

The files hold plain values and tensors only, and are read as such: they are never unpickled freely.
"""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.evaluation import Evaluation
from tiaft_plugin.finetune.measured import Measured


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically. Raises Stopped where the disk is full."""
    try:
        with write_atomically(path) as temporary:
            torch.save(content, temporary)
    except RuntimeError as error:  # how torch says that it cannot write
        raise Stopped(
            f"{path} cannot be written ({first_line(error)}): is the disk full? The same command "
            "goes on from the last checkpoint"
        ) from error


def load(path: Path) -> dict[str, Any] | None:
    """Return what was saved, on the CPU, or None where nothing was. Raises TiaftError."""
    if not path.is_file():
        return None
    try:
        with ZipFile(path) as parts:
            if damaged := parts.testzip():  # torch.load does not look at checksums
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise TypeError("it holds something else")
    except Exception as error:  # pickle, zip and torch errors alike
        why = first_line(error).split(". ")[0]  # PyTorch goes on to advise reading it unsafely
        raise TiaftError(f"{path} cannot be read ({why}): remove it to repeat its stage") from error
    return state


def measured_to_plain(measured: Measured) -> dict[str, Any]:
    """Return what was measured as plain values and tensors."""
    plain = dict(vars(measured))
    for name in ("val", "test"):
        found: Evaluation | None = plain[name]
        plain[name] = found and {
            "classes": list(found.classes),
            "targets": torch.tensor(found.targets),
            "probabilities": torch.tensor(found.probabilities),
            "losses": torch.tensor(found.losses),
            "multilabel": found.multilabel,
        }
    return plain


def measured_from_plain(plain: dict[str, Any]) -> Measured:
    """Return what `measured_to_plain` was given."""
    found = dict(plain)
    for name in ("val", "test"):
        if found[name] is not None:
            values = found[name]
            arrays = {key: values[key].numpy() for key in ("targets", "probabilities", "losses")}
            found[name] = Evaluation(
                tuple(values["classes"]), multilabel=values["multilabel"], **arrays
            )
    return Measured(**found)
