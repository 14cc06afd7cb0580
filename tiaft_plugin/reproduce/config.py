"""The one configuration file of the chain: TOML, every key checked."""

import math
import tomllib
from dataclasses import MISSING, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.words import some

EXPERIMENTS = ("tissue", "expression", "mutation")
READINGS = ("pooled", "stage1")
_POSITIVE = {
    "finetune": ("mpp", "batch_size"),
    "extract": ("resolution", "stride", "slide_mpp", "batch_size"),
}
Transform = Literal["log2p1", "log1p", "none"]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the data lie; paths are relative to the configuration file (section 3.1)."""

    finetune: Path  # NCT-CRC-HE-100K
    tissue: Path | None = None  # CRC-VAL-HE-7K
    slides: Path | None = None  # a folder, searched through
    slide_table: Path | None = None  # of `tiaft reproduce cohort`: slide,patient
    expression: Path | None = None
    mutations: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """How the model is fine-tuned (section 3.2)."""

    backbone: str = "legacy_xception"
    init: str = "imagenet"  # or a file of weights
    hidden: tuple[int, ...] = (2048,)
    epochs: tuple[int, ...] = (20, 10)
    learning_rates: tuple[float, ...] = (4e-4, 5e-5)
    batch_size: int = 128
    freeze_batchnorm: bool = False
    mpp: float = 0.5  # µm/px of the tiles
    imgnet: tuple[str, ...] = ("pooled",)  # readings of IMGNET-2048: pooled, stage1


@dataclass(frozen=True, kw_only=True)
class Extract:
    """How tiles of slides become features (section 3.3)."""

    resolution: float = 0.25  # µm/px
    stain: str = "macenko"  # or none
    stride: int | None = None  # px; None: the tile size
    min_tissue: float = 0.5
    slide_mpp: float | None = None  # µm/px of slides whose file has none
    batch_size: int = 32


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How features are probed (section 3.3: five folds, 50 repeats)."""

    folds: int = 5
    repeats: int = 50
    grouped: bool = True
    permutations: int = 99
    draws: int = 2000
    transform: Transform = "log2p1"  # of expression; log1p, none
    unmatched: Literal["refuse", "drop"] = "refuse"  # patients that not all tables have


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of a chain. `experiments` are those to run, `seed` is of all that is random."""

    data: Data
    finetune: Finetune = field(default_factory=Finetune)
    extract: Extract = field(default_factory=Extract)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    experiments: tuple[str, ...] = EXPERIMENTS
    seed: int = 0
    device: str = "auto"
    workers: int = 0  # processes that read tiles


def read_config(path: Path) -> Config:
    """Read a configuration. Raises TiaftError that names the file, the key and what is wrong."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TiaftError(f"{path} cannot be read as TOML: {error}") from error
    try:
        config = _make(Config, values, "", path.parent)
        weights = path.parent / config.finetune.init
        if weights.is_file():
            config = replace(config, finetune=replace(config.finetune, init=str(weights)))
        _check(config)
    except TiaftError as error:
        raise TiaftError(f"{path}: {error}") from error
    return config


def needed(config: Config) -> dict[str, Path | None]:
    """Return the data that the experiments need, by their keys."""
    data = config.data
    wanted: dict[str, Path | None] = {"data.finetune": data.finetune}
    if "tissue" in config.experiments:
        wanted["data.tissue"] = data.tissue
    if {"expression", "mutation"} & set(config.experiments):
        wanted |= {"data.slides": data.slides, "data.slide_table": data.slide_table}
    if "expression" in config.experiments:
        wanted["data.expression"] = data.expression
    if "mutation" in config.experiments:
        wanted["data.mutations"] = data.mutations
    return wanted


def _check(config: Config) -> None:
    """Raise TiaftError for what no chain can be run with, before anything is run."""
    for key, names, allowed in (
        ("experiments", config.experiments, EXPERIMENTS),
        ("finetune.imgnet", config.finetune.imgnet, READINGS),
        ("extract.stain", (config.extract.stain,), ("macenko", "none")),
        ("probe.transform", (config.probe.transform,), get_args(Transform)),
        ("probe.unmatched", (config.probe.unmatched,), ("refuse", "drop")),
    ):
        wrong = [name for name in names if name not in allowed]
        if wrong or not names or len(set(names)) < len(names):
            raise TiaftError(f"{key} is {', '.join(names) or 'empty'}: of {', '.join(allowed)}")
    for section, names in _POSITIVE.items():
        for name in names:
            if getattr(getattr(config, section), name) == 0:
                raise TiaftError(f"{section}.{name} is 0: more, please")
    for key in ("epochs", "learning_rates"):
        if len(getattr(config.finetune, key)) != 2:
            raise TiaftError(f"finetune.{key}: two numbers expected, one for each stage")
    lacking = [f"{key} is not given" for key, path in needed(config).items() if path is None]
    lacking += [
        f"{key} is not there ({path})"
        for key, path in needed(config).items()
        if path is not None and not path.exists()
    ]
    if lacking:
        raise TiaftError(
            f"{'; '.join(lacking)}: name what there is, or run fewer `experiments` "
            "(docs/reproduce.md says where the data are from)"
        )


def _make(kind: type, values: dict[str, Any], where: str, folder: Path) -> Any:
    """Return a dataclass of a table's values. Raises TiaftError for wrong keys and values."""
    hints = get_type_hints(kind)
    unknown = [name for name in values if name not in hints]
    if unknown:
        close = get_close_matches(unknown[0], hints, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(hints)}"
        raise TiaftError(f"there is no key {where}{some(unknown)}: {hint}")
    found = {
        name: _make(hints[name], value, f"{name}.", folder)
        if hasattr(hints[name], "__dataclass_fields__") and isinstance(value, dict)
        else _value(value, hints[name], where + name, folder)
        for name, value in values.items()
    }
    for item in fields(kind):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in found:
            raise TiaftError(f"{where}{item.name} is missing")
    return kind(**found)


def _value(value: Any, hint: Any, key: str, folder: Path) -> Any:
    """Return a value of the kind that a field has. Raises TiaftError for another kind."""
    if isinstance(hint, UnionType):  # X | None; TOML has no None
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        hint = str  # which of them, `_check` sees
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(item, get_args(hint)[0], key, folder) for item in value)
    if hint is Path and isinstance(value, str) and value:
        return folder / Path(value).expanduser()
    if hint is float and type(value) in (int, float) and math.isfinite(value) and value >= 0:
        return float(value)
    if hint is int and type(value) is int and value >= 0:
        return value
    if hint in (str, bool) and type(value) is hint:
        return value
    words = {
        Path: "a path in quotes", float: "a number, 0 or more", int: "a whole number, 0 or more",
        str: "a text", bool: "true or false",
    }  # fmt: skip
    raise TiaftError(
        f"{key} is {value!r}, not {words.get(hint, 'a list, or a table [' + key + ']')}"
    )
