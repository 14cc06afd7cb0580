"""Feature sets as ``.npz``: plain arrays, never pickled; ``docs/formats.md`` describes them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import sha256_of, write_atomically
from tiaft_plugin.probes.interface import FeatureTable, Unit
from tiaft_plugin.probes.rows import FeatureRows, as_text, feature_table, known_text

_OTHER_NAMES = {"group": "groups", "label": "labels", "patient": "patients", "slide": "slides"}
_READ = ("features", "keys", "patients", "groups", "slides", "labels", "colour", "about")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same in every file, so that the same arrays are the same bytes


def read_npz(path: Path) -> FeatureRows:
    """Read `features` (N, D) and `keys` (N,), and what else of the format there is.

    Raises TiaftError for what is no such file, is cut short, or holds Python objects.
    """
    arrays = _arrays(path)
    lacking = [name for name in ("features", "keys") if name not in arrays]
    if lacking:
        raise TiaftError(
            f"{path}: no array {' and '.join(lacking)}; a feature set has `features` (N, D) and "
            f"`keys` (N,), here is {', '.join(arrays) or 'nothing'}"
        )
    about = _about(path, arrays.get("about"))
    unread = [name for name in arrays if name not in _READ]
    notes = [f"arrays that are not read: {', '.join(unread)}"] if unread else []
    keys = as_text(str(path), "keys", arrays["keys"])
    belongs = {
        what: known
        for what in ("patient", "group", "slide")
        if (known := known_text(str(path), f"{what}s", arrays.get(f"{what}s"), len(keys)))
        is not None
    }
    return FeatureRows(
        path,
        keys,
        arrays["features"],
        belongs,
        arrays.get("labels"),
        arrays.get("colour"),
        str(about.get("unit", "")),
        {
            "format": "npz",
            "files": [path.name],
            "sha256": sha256_of(path),
            "models": about["models"],
            "about": {key: about[key] for key in sorted(about) if key not in ("models", "unit")},
            "notes": notes,
        },
    )


def write_features(
    path: Path | str, table: FeatureTable, *, overwrite: bool = False, unit: Unit = "tile"
) -> Path:
    """Write a feature set as ``.npz``: the same table gives the same bytes.

    `unit` is what a row is, and is noted: rows of patients are not averaged again. Raises
    TiaftError for a table that could not be read again, and for a file that exists.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise TiaftError(f"{path}: a feature set is written as .npz")
    sound = feature_table(
        path,
        table.name,
        table.keys,
        table.values,
        groups=table.groups,
        labels=table.labels,
        colour=table.colour,
    )
    more = table.source.get("about", {})
    about = {**more, "models": table.source.get("models", []), "unit": unit}
    arrays = {
        "features": sound.values,
        "keys": sound.keys,
        "groups": sound.groups,
        "labels": sound.labels,
        "colour": sound.colour,
        "about": np.array(json.dumps(about, sort_keys=True, ensure_ascii=False)),
    }
    with write_atomically(path, overwrite=overwrite) as temporary:
        _write(temporary, {name: array for name, array in arrays.items() if array is not None})
    return path


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write what numpy.savez would, but for the date and system that its zip would carry."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", _DATE)
            info.create_system = 3
            with archive.open(info, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise TiaftError(f"{path} is a single array: save it with np.savez, with its keys")
        with archive:
            return {_OTHER_NAMES.get(name, name): _array(path, archive, name) for name in archive}
    except TiaftError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise what they like on damaged files
        if isinstance(error, OSError) and error.strerror:
            raise TiaftError(f"{path} cannot be read: {error.strerror}") from error
        # numpy takes what it does not know for a pickle, and tells how to read that unsafely
        why = "no zip file" if "pickle" in str(error) else first_line(error)
        raise TiaftError(
            f"{path} cannot be read as .npz, it is cut short or something else: {why}"
        ) from error


def _array(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise TiaftError(
            f"{path}: array `{name}` holds Python objects, which are not read because they can run "
            "code: save texts with dtype=str, numbers with dtype=float32"
        ) from error


def _about(path: Path, array: np.ndarray | None) -> dict[str, Any]:
    """Return what is in `about`; {"models": []} where there is nothing."""
    if array is None:
        return {"models": []}
    try:
        about = {"models": [], **json.loads(str(array))}
        models = [{key: str(model[key]) for key in ("name", "sha256")} for model in about["models"]]
    except (ValueError, TypeError, KeyError) as error:
        raise TiaftError(
            f'{path}: `about` must be JSON such as {{"models": [{{"name": …, "sha256": …}}]}}'
        ) from error
    return {**about, "models": models}
