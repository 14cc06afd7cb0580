"""Which tiles there are: a folder per class, or a manifest. No image is opened here."""

import csv
import math
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.words import some

MANIFEST = "manifest.csv"
SEPARATOR = ";"  # between the labels of a tile that has several
_CLUTTER = {"thumbs.db", "desktop.ini"}  # and hidden files: left by file managers


class Row(NamedTuple):
    """One tile: its file, its class, its slide or patient, and its µm/px, where they are given.

    Where tiles have several labels, `label` holds them with ";" between, or nothing.
    """

    file: Path
    label: str
    group: str | None
    mpp: float | None


def list_tiles(path: Path, *, multilabel: bool = False) -> tuple[Path, list[Row]]:
    """Return the root folder and the tiles of a manifest, or of a folder. Raises TiaftError.

    With `multilabel` tiles may have several labels, which only a manifest can tell.
    """
    if path.is_dir():
        manifest = path / MANIFEST
        if manifest.is_file():
            return path, list_manifest(manifest, multilabel=multilabel)
        if multilabel:
            raise TiaftError(
                f"{path} holds no {MANIFEST}: tiles of several labels stand in one, with A;B in "
                "its column label; a folder per class gives each tile one"
            )
        return path, list_folders(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return path.parent, list_manifest(path, multilabel=multilabel)
    if path.exists():
        raise TiaftError(f"{path} is no tile set: give a folder per class, or a manifest.csv")
    raise TiaftError(f"{path}: no such tile set")


def list_folders(root: Path) -> list[Row]:
    """Return the tiles of a folder that holds one folder per class, sorted. Raises TiaftError."""
    folders = [entry for entry in _visible(root) if entry.is_dir()]
    loose = [entry.name for entry in _visible(root) if _looks_like_tile(entry)]
    if not folders or loose:
        found = f"holds tiles of no class: {some(loose)}" if loose else "holds no class folders"
        raise TiaftError(f"{root} {found}: put tiles into a folder per class, or write {MANIFEST}")
    rows, empty = [], []
    for folder in folders:
        tiles = _visible(folder)
        nested = [tile.name for tile in tiles if tile.is_dir()]
        if nested:
            raise TiaftError(
                f"{folder} holds folders ({some(nested)}): tiles stand directly in their class's "
                f"folder, or in a {MANIFEST}"
            )
        rows += [Row(tile, folder.name, None, None) for tile in tiles]
        empty += [] if tiles else [folder.name]
    if empty:
        raise TiaftError(
            f"{root}: class folders without a tile: {some(empty)}: remove or fill them"
        )
    return rows


def list_manifest(path: Path, *, multilabel: bool = False) -> list[Row]:
    """Return the tiles of a manifest ``file,label[,group][,mpp]``; files are relative to it.

    With `multilabel` a label is ``A;B``, or empty. Further columns are allowed. Raises TiaftError
    that names wrong columns, rows and files.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = [name for name in ("file", "label") if name not in columns]
            if missing:
                raise TiaftError(
                    f"{path}: no column {' and '.join(missing)}; a manifest begins with "
                    f"file,label,group[,mpp], this one with {','.join(columns) or 'nothing'}"
                )
            rows = [_row(path, reader.line_num, values, multilabel) for values in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TiaftError(f"{path} cannot be read as CSV in UTF-8: {error}") from error
    _refuse_twice_or_missing(path, rows)
    return rows


def labels_in(text: str) -> list[str]:
    """Return the labels in a text such as ``A;B``; none are in an empty one."""
    return [name.strip() for name in text.split(SEPARATOR)] if text.strip() else []


def _row(manifest: Path, line: int, values: dict, multilabel: bool) -> Row:
    text = {name: (values.get(name) or "").strip() for name in ("file", "label", "group", "mpp")}
    if not text["file"] or not (text["label"] or multilabel):
        raise TiaftError(f"{manifest}, line {line}: file or label is empty")
    if multilabel:
        text["label"] = _several(manifest, line, text["label"])
    # normpath, not resolve: a hundred thousand look-ups on a network drive take minutes.
    file = Path(os.path.normpath(manifest.parent / text["file"]))
    return Row(file, text["label"], text["group"] or None, _mpp(manifest, line, text["mpp"]))


def _several(manifest: Path, line: int, text: str) -> str:
    names = labels_in(text)
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if "" in names or twice:
        fault = f"{some(twice)} stands twice" if twice else "a name is missing between ;"
        raise TiaftError(f"{manifest}, line {line}: label is {text!r}: {fault}")
    return SEPARATOR.join(names)


def _mpp(manifest: Path, line: int, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise TiaftError(f"{manifest}, line {line}: mpp is {text!r}, not a positive µm/px")
    return value


def _refuse_twice_or_missing(manifest: Path, rows: list[Row]) -> None:
    if not rows:
        raise TiaftError(f"{manifest} lists no tile")
    twice = [str(file) for file, count in Counter(row.file for row in rows).items() if count > 1]
    if twice:
        raise TiaftError(f"{manifest} lists a file more than once: {some(twice)}")
    missing = [str(row.file) for row in rows if not row.file.is_file()]
    if missing:
        raise TiaftError(
            f"{manifest}: {len(missing)} of {len(rows)} files are missing: {some(missing)}"
        )


def _visible(folder: Path) -> list[Path]:
    entries = (e for e in folder.iterdir() if e.name.lower() not in _CLUTTER)
    return sorted(e for e in entries if not e.name.startswith("."))


def _looks_like_tile(path: Path) -> bool:
    from PIL import Image

    return path.is_file() and path.suffix.lower() in Image.registered_extensions()
