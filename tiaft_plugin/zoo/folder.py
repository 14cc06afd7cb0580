"""The user's model folder: one safetensors file per name, and a note of where it came from."""

import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.files import locked, sha256_of, write_atomically
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.plugins import NAME, collect
from tiaft_plugin.zoo.promises import ALIASES, FEATURES, PROMISES
from tiaft_plugin.zoo.registry import owner_of


@dataclass(frozen=True)
class Note:
    """What was written down when a model was added."""

    sha256: str
    source: str
    added: str


def model_folder() -> Path:
    """Return the user's model folder, which need not exist.

    ``TIAFT_MODELS`` names another one, such as a lab's shared folder.
    """
    if os.environ.get("TIAFT_MODELS"):
        return Path(os.environ["TIAFT_MODELS"]).expanduser()
    from tiatoolbox import rcParam

    return Path(rcParam["TIATOOLBOX_HOME"]) / "models" / "tiaft"


def file_of(name: str) -> Path:
    """Return where the model file of a name stands or would stand."""
    return model_folder() / f"{name}.safetensors"


def names() -> list[str]:
    """Return the names of the models in the folder, sorted."""
    files = model_folder().glob("*.safetensors")
    return sorted(path.stem for path in files if not path.name.startswith("."))  # half-written


def check_name(name: str) -> str:
    """Return the name a model file is kept under. Raises TiaftError if it cannot be had."""
    if name in ALIASES:
        return ALIASES[name].removesuffix(FEATURES)
    if name not in PROMISES:
        refuse_model_name(name)
        registered = collect("register_models").get(name)
        if registered is not None:
            raise TiaftError(
                f"{name} is a model of plug-in {registered.plugin}: choose another name"
            )
    return name


def refuse_model_name(name: str) -> None:
    """Raise TiaftError for what cannot name a user's or a plug-in's model.

    A name of TIAToolbox, timm or torchvision is refused: theirs would win, silently.
    """
    if not NAME.fullmatch(name) or name.endswith(FEATURES):
        raise TiaftError(
            f"{name!r} cannot name a model: up to 64 letters, digits and _ . + -, and no "
            f"{FEATURES} at the end, which every model's features have"
        )
    owner = "tiaft" if name in {*PROMISES, *ALIASES} else owner_of(name)
    if owner:
        raise TiaftError(f"{name} is a model of {owner}: choose another name")


def add_model(
    name: str,
    source: str | Path,
    *,
    sha256: str | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Put a model into the folder, under `name`, after loading it whole. Returns its path.

    `source` is a model file, ``hf://owner/repo/file@revision`` or an https address (then `sha256`
    is needed). `mpp` (µm/px) fills in or corrects the card's. Models of the nine kather100k
    classes get TIAToolbox's class order. Raises TiaftError.
    """
    from tiaft_plugin.network import load_model, reorder_classes, save_model
    from tiaft_plugin.zoo.sources import fetched

    name = check_name(name)
    path = file_of(name)
    with locked(path, wait=False), fetched(str(source), sha256) as file:
        if path.exists() and not overwrite:
            raise TiaftError(
                f"there is a model {name} already ({path}): pass --overwrite to replace it"
            )
        net = load_model(file)
        before = net.card
        if mpp is not None:
            net.card = replace(net.card, mpp=mpp)
        if net.card.mpp is None:
            raise TiaftError(
                f"{source} does not say its tiles' µm/px, which a slide is read at: pass --mpp"
            )
        if name in PROMISES:
            PROMISES[name].check(net.card)
        if sorted(net.card.classes) == sorted(KATHER100K):
            reorder_classes(net, KATHER100K)
        _note_file(name).unlink(missing_ok=True)  # no note is better than an earlier file's
        if net.card == before:  # the very same bytes: the SHA-256 stays the model's identity
            with write_atomically(path) as temporary:
                shutil.copyfile(file, temporary)
        else:
            save_model(net, path, overwrite=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        note = Note(sha256_of(path), _shown(source), now)
        with write_atomically(_note_file(name)) as temporary:
            temporary.write_text(json.dumps(note.__dict__, indent=2) + "\n", encoding="utf-8")
    return path


def remove_model(name: str) -> Path:
    """Take a model out of the folder. Raises TiaftError if it is not there."""
    name = ALIASES.get(name, name).removesuffix(FEATURES)
    path = file_of(name)
    if not NAME.fullmatch(name) or not path.is_file():
        raise TiaftError(f"there is no model {name} in {model_folder()}")
    path.unlink()
    _note_file(name).unlink(missing_ok=True)
    return path


def note_of(name: str) -> Note | None:
    """Return what was noted when a model was added; None where it was put there by hand."""
    try:
        values = json.loads(_note_file(name).read_text(encoding="utf-8"))
        return Note(str(values["sha256"]), str(values["source"]), str(values["added"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise TiaftError(f"{_note_file(name)} cannot be read: {reason(error)}") from error


def _note_file(name: str) -> Path:
    return model_folder() / f"{name}.json"


def _shown(source: str | Path) -> str:
    """A local file by its name alone: paths say more about a person than about a model."""
    text = str(source)
    return text if "://" in text else Path(text).name
