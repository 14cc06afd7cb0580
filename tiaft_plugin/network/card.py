"""The card of a model file: everything but the numbers that it takes to rebuild the network.

Reading a card touches the file's header only and loads no torch.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError

METADATA_KEY = "tiaft_card"
CARD_VERSION = 1
# One class a tile (a model that gives features only says so, too), or any number of labels.
TASKS = ("classes", "multilabel")
UNCLASSIFIED = "unclassified"  # what a tile is called that has none of several labels
MAX_ARGUMENT = 8192  # in backbone_args: no real width, depth or side is larger


@dataclass(frozen=True)
class Card:
    """What a model is: see ``docs/formats.md`` for each field.

    `tile_size` is in pixels, `mpp` in µm per pixel (None: unknown, and the model cannot be
    registered); `hidden` are the widths of Part B's hidden layers; `mean` and `std` belong to
    pixel values scaled to 0…1. A model without classes has no Part B. `task` is ``classes``, one
    a tile, or ``multilabel``: `classes` are then labels, of which a tile has any number.
    """

    backbone: str
    tile_size: int
    mpp: float | None
    classes: tuple[str, ...]
    hidden: tuple[int, ...]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    backbone_args: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    source: str = ""
    task: str = "classes"
    version: int = CARD_VERSION

    def __post_init__(self):
        for name in ("classes", "hidden", "mean", "std"):
            if not isinstance(getattr(self, name), list | tuple):
                raise TiaftError(f"model card: {name} is {getattr(self, name)!r}, not a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        problem = _problem(self)
        if problem:
            raise TiaftError(f"model card: {problem}")

    @property
    def multilabel(self) -> bool:
        """Whether a tile has any number of the labels `classes`, not one of them."""
        return self.task == "multilabel"

    def to_json(self) -> str:
        """Return the card as JSON, keys sorted: the same card is always the same text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)


def read_card(path: Path | str) -> Card:
    """Read the card of a model file. Raises TiaftError that names the file and the fault."""
    path = Path(path)
    return card_of(_metadata(path), path)


def has_card(path: Path) -> bool:
    """Tell whether a file is a model file. Raises TiaftError for damaged safetensors files."""
    return is_file(path) and is_safetensors(path) and METADATA_KEY in _metadata(path)


def is_safetensors(path: Path) -> bool:
    """Tell by name, or by how it begins, whether a file is safetensors. Raises TiaftError."""
    if path.suffix == ".safetensors" or not is_file(path):
        return path.suffix == ".safetensors"
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise TiaftError(f"{path} cannot be read: {error.strerror}") from error


def card_of(metadata: dict[str, str], path: Path) -> Card:
    """Return the card in a safetensors file's metadata. Raises TiaftError, which names `path`."""
    if METADATA_KEY not in metadata:
        raise TiaftError(
            f"{path} holds weights but no tiaft model card: make a model file of it with "
            f"`tiaft models create FILE --backbone NAME --init {path}`"
        )
    try:
        return card_from_json(metadata[METADATA_KEY])
    except TiaftError as error:
        raise TiaftError(f"{path}: {error}") from error


def is_file(path: Path) -> bool:
    """Tell whether `path` is a file; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    if not is_file(path):
        raise TiaftError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise TiaftError(
            f"{path} is not a whole safetensors file ({error}): "
            "copy it again, or import other formats with `tiaft models convert`"
        ) from error


def card_from_json(text: str) -> Card:
    """Parse a card. Raises TiaftError where a field is missing, unknown in type, or wrong."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TiaftError(f"model card: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise TiaftError("model card: not a JSON object")
    version = values.get("version")
    if isinstance(version, int) and version > CARD_VERSION:
        raise TiaftError(
            f"model card: version {version} is newer than this tiaft_plugin reads "
            f"({CARD_VERSION}): upgrade tiaft_plugin"
        )
    missing = [
        name
        for name in ("backbone", "tile_size", "mpp", "classes", "hidden", "version")
        if name not in values
    ]
    if missing:
        raise TiaftError(f"model card: {', '.join(missing)} missing")
    known = {f.name for f in fields(Card)}
    try:
        return Card(**{name: value for name, value in values.items() if name in known})
    except TypeError as error:
        raise TiaftError(f"model card: {error}") from error


def _problem(card: Card) -> str:
    """Return what is wrong with a card, or an empty string."""
    if not isinstance(card.backbone, str) or not card.backbone:
        return f"backbone is {card.backbone!r}, not a name"
    if not _is_count(card.tile_size):
        return f"tile_size is {card.tile_size!r}, not a number of pixels"
    if card.mpp is not None and not _is_positive(card.mpp):
        return f"mpp is {card.mpp!r}, not a positive number of µm per pixel"
    if not all(isinstance(n, str) and n.strip() and n.isprintable() for n in card.classes):
        return f"classes {list(card.classes)!r} are not all names"
    if len(set(card.classes)) != len(card.classes):
        return f"classes {list(card.classes)!r} name one class twice"
    if len(card.classes) == 1 and card.task != "multilabel":
        return "one class is no choice: give two or more, or none for features only"
    if not all(_is_count(width) for width in card.hidden):
        return f"hidden {list(card.hidden)!r} are not widths"
    if card.hidden and not card.classes:
        return "Part B needs a class list, and there is none"
    if len(card.mean) != 3 or len(card.std) != 3:
        return "mean and std need one value for each of red, green and blue"
    if not all(_is_number(value) for value in card.mean) or not all(map(_is_positive, card.std)):
        return f"mean {list(card.mean)!r} or std {list(card.std)!r} cannot normalise pixels"
    if not all(isinstance(part, dict) for part in (card.backbone_args, card.training, card.data)):
        return "backbone_args, training and data are not all objects"
    for name, value in card.backbone_args.items():
        if not _is_argument(value):
            return (
                f"backbone_args {name} is {value!r:.60}: texts, numbers up to {MAX_ARGUMENT} and "
                "lists of eight of them are read"
            )
    if card.task not in TASKS:
        return (
            f"task is {card.task!r}, and this tiaft_plugin reads models of {', '.join(TASKS)} "
            "only: upgrade tiaft_plugin"
        )
    if card.multilabel and (not card.classes or UNCLASSIFIED in card.classes):
        return f"task multilabel needs labels, none of which is called {UNCLASSIFIED!r}"
    if not isinstance(card.licence, str) or not isinstance(card.source, str):
        return "licence and source are not all texts"
    if not _is_count(card.version):
        return f"version is {card.version!r}, not a number"
    return ""


def _is_argument(value: Any) -> bool:
    """Whether a stranger's argument may go to timm: huge numbers would build a huge network."""
    if isinstance(value, list | tuple):
        return (
            len(value) <= 8
            and not any(isinstance(v, list | tuple) for v in value)
            and all(map(_is_argument, value))
        )
    if isinstance(value, int | float):
        return -MAX_ARGUMENT <= value <= MAX_ARGUMENT
    return value is None or (isinstance(value, str) and len(value) <= 200)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1_000_000


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0
