"""Bags that were never slides: a folder of tiles each, as feature stores like any other's."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine.jobs import patient_of
from tiaft_plugin.engine.slides import fingerprint
from tiaft_plugin.engine.store import (
    CHUNK_ROWS,
    chunk_slice,
    describe,
    open_for_writing,
    write_chunk,
)
from tiaft_plugin.engine.tile_features import ExtractedTiles, extract_tiles
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.files import DISK_ERRORS, refuse_unwritable
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some


def write_tile_stores(
    tiles: TileSet,
    model: str,
    out: Path,
    *,
    patients: Mapping[str, str] | None = None,
    overwrite: bool = False,
    **how: Any,
) -> list[Path]:
    """Write a feature store for each folder of a tile set, called as the folder is; return them.

    `model` is a name or model file, of the tiles' size; `patients` maps folders to patients, else
    the tiles' groups do; `how` are `extract_tiles`' batch_size, device, workers and stain. A
    store's slide is the folder: it has its name and fingerprint, and its tiles stand side by side
    in the order of their names. Raises TiaftError.
    """
    if tiles.mpp is None:
        raise TiaftError(f"{tiles.root}: the tiles' µm/px is not known: pass --mpp")
    folders = sorted({file.parent for file in tiles.files})
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        raise TiaftError(f"{tiles.root}: two folders have one name: a folder is a bag here")
    place, root = out.resolve(), tiles.root.resolve()
    if place == root or any(place.is_relative_to(folder.resolve()) for folder in folders):
        raise TiaftError(f"{out} is where the tiles are: choose another folder for their stores")
    if not overwrite and (there := [n for n in names if (out / f"{n}.zarr").exists()]):
        raise TiaftError(
            f"{out / there[0]}.zarr exists already: choose another folder, or pass --overwrite"
        )
    for folder in folders:
        listed = sum(file.parent == folder for file in tiles.files)
        if len(tiles_in(folder)) != listed:
            raise TiaftError(
                f"{folder} holds other files than its {listed} tiles: a bag is a folder of its "
                "own, with images only"
            )
    known = dict(patients or {})
    whose = {each: patient_of(each, known) for each in folders} if known else _groups(tiles)
    refuse_unwritable(out)
    found = extract_tiles(tiles, model, **how)
    about = found.about["tiles"]
    if about["resized_to"]:
        raise TiaftError(
            f"{tiles.root}: tiles have {about['tile_size']} px, {model} is for "
            f"{about['resized_to']} px: bags of such tiles could not be read again as they were"
        )
    parents = np.array([str((tiles.root / key).parent) for key in found.keys.tolist()])
    return [
        _write(folder, parents == str(folder), found, whose.get(folder), out, overwrite)
        for folder in folders
    ]


def _groups(tiles: TileSet) -> dict[Path, str | None]:
    """Return the group of each folder's tiles, for a patient. Raises TiaftError for several."""
    found: dict[Path, set[str]] = {}
    for file, group in zip(tiles.files, tiles.groups, strict=True):
        if group is not None:
            found.setdefault(file.parent, set()).add(group)
    for folder, groups in found.items():
        if len(groups) > 1:
            raise TiaftError(
                f"{folder}: its tiles are of several groups ({some(sorted(groups))}), and a bag is "
                "of one patient: name them, --patients"
            )
    return {folder: groups.pop() for folder, groups in found.items()}


def _write(
    folder: Path,
    rows: np.ndarray,
    found: ExtractedTiles,
    patient: str | None,
    out: Path,
    overwrite: bool,
) -> Path:
    """Write the store of a folder, whose tiles are `rows` (N,) bool."""
    about = found.about
    size, mpp, count = about["tiles"]["tile_size"], about["tiles"]["mpp"], int(rows.sum())
    settings = {
        "kind": "features",
        "slide": {
            "name": folder.name,
            "fingerprint": fingerprint(folder),
            "size": [size * count, size],
            "mpp": [mpp, mpp],
        },
        "model": about["models"][0],
        "classes": [],
        "grid": {
            "tile_size": [size, size],
            "stride": [size, size],
            "resolution": mpp,
            "units": "mpp",
            "mask": "none",
            "min_tissue": 0.0,
        },
        "scale_to_baseline": [1.0, 1.0],
        "precision": "float32",
        "stain_normalisation": about["stain_normalisation"],
    }
    circumstances = {name: about[name] for name in ("batch_size", "threads", "device", "versions")}
    facts = describe(settings, patient=patient, seed=None, **circumstances)
    x = np.arange(count) * size
    coordinates = np.stack([x, x * 0, x + size, x * 0 + size], axis=1)
    group = open_for_writing(
        path := out / f"{folder.name}.zarr",
        facts,
        coordinates,
        np.ones(count),
        width=found.features.shape[1],
        beside=("colour",),
        overwrite=overwrite,
    )
    features, colour = found.features[rows], found.colour[rows]
    try:
        for number in range(-(-count // CHUNK_ROWS)):
            chunk = chunk_slice(number, CHUNK_ROWS)
            write_chunk(group, number, features[chunk], {"colour": colour[chunk]})
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)  # no run goes on with half of it
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise Stopped(f"{path} cannot be written: {error.strerror}") from error
        raise
    return path


def is_tile_folder(path: Path) -> bool:
    """Tell whether a slide is none, but a folder of tiles: it holds images and nothing else."""
    return path.is_dir() and bool(tiles_in(path))


def tiles_in(folder: Path) -> tuple[Path, ...]:
    """Return the tiles of a folder in the order of their names; none where it holds other files."""
    from PIL import Image

    known = Image.registered_extensions()
    there = (path for path in folder.iterdir() if not path.name.startswith("."))
    found = sorted(there, key=lambda path: path.name)  # as stores have them: case counts
    return tuple(found) if all(path.suffix.lower() in known for path in found) else ()
