"""A push without Java: GeoJSON beside a project, and Groovy scripts with which QuPath takes it in.

QuPath's own "Import objects" would add the objects a second time, and on 0.5 without their marks;
`import.groovy` does what `plan.plan_push` does, in QuPath.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
import shapely

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.qupath.geojson import class_text, measurement_texts, tile_features
from tiaft_plugin.qupath.marks import Mark, image_metadata, shape_text
from tiaft_plugin.qupath.names import path_class
from tiaft_plugin.qupath.objects import NewAreas, NewTiles
from tiaft_plugin.qupath.project.project_file import ImageEntry, Project

_FOLDER = "tiaft"  # in the project's
_AT_ONCE = 10_000  # objects that are text in memory
_SHORT = 8  # characters of a SHA-256 in names of files


def write_script(
    project: Project, prepared: Iterable[tuple[ImageEntry, NewTiles | NewAreas]]
) -> list[Path]:
    """Write each image's objects into the project's ``tiaft/``, and the scripts into ``scripts/``.

    One script for each model imports its objects; another exports what people drew and corrected.
    Nothing that QuPath wrote is changed, so that the project may be open there. Where an image
    comes twice for a model, the later objects replace the earlier, as in any push. Returns all that
    was written. Raises TiaftError.
    """
    written: dict[Path, None] = {}
    models: dict[str, str] = {}
    for entry, new in prepared:
        path = _geojson_path(project, entry, new)
        _write_objects(path, entry, new)
        written[path] = None
        models[new.origin.sha256] = new.origin.model
    scripts = [_write_import(project, model, sha256) for sha256, model in models.items()]
    return [*written, *scripts, write_export(project)]


def write_export(project: Project) -> Path:
    """Write the script that exports annotations and corrected tiles; return its path."""
    return _write_groovy(project, "tiaft export annotations", "export.groovy", {})


def _write_import(project: Project, model: str, sha256: str) -> Path:
    name = _plain(model)
    short = sha256[:_SHORT]
    words = {"@MODEL@": name, "@SHA256@": sha256, "@SHORT@": short}
    return _write_groovy(project, f"tiaft import {name} {short}", "import.groovy", words)


def _write_groovy(project: Project, name: str, template: str, words: Mapping[str, str]) -> Path:
    folder = files("tiaft_plugin.qupath.pushing")
    text = folder.joinpath(template).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(word, value)
    text = text.replace("@MARKS@\n", folder.joinpath("marks.groovy").read_text(encoding="utf-8"))
    path = project.path.parent / "scripts" / f"{name}.groovy"
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _plain(model: str) -> str:
    """Return a model's name as it may stand in any file's name, and in a script."""
    return re.sub(r"[^\w.+-]", "_", model, flags=re.ASCII)[:80] or "model"


def _geojson_path(project: Project, entry: ImageEntry, new: NewTiles | NewAreas) -> Path:
    sha256 = new.origin.sha256
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise TiaftError(f"{new.origin.model}: {sha256!r} is no SHA-256: predict with a model file")
    return project.path.parent / _FOLDER / f"{entry.id}-{sha256[:_SHORT]}.geojson"


def _write_objects(path: Path, entry: ImageEntry, new: NewTiles | NewAreas) -> None:
    features = _tiles(new) if isinstance(new, NewTiles) else _areas(new)
    with (
        write_atomically(path) as temporary,
        temporary.open("w", encoding="ascii", newline="\n") as file,  # the script reads its end
    ):
        file.write('{"type":"FeatureCollection",\n"tiaft":' + _origin(entry, new))
        file.write(',\n"features":[')
        separator = "\n"
        for feature in features:
            file.write(separator + feature)
            separator = ",\n"
        file.write("\n]}\n")


def _origin(entry: ImageEntry, new: NewTiles | NewAreas) -> str:
    """Return what the script has to know before it reads the objects."""
    if entry.size is None:
        raise TiaftError(f"{entry.name}: the project does not say its size: open it in QuPath once")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    classes = zip(new.classes.names, new.classes.colours, strict=True)
    origin = {
        "image": {"id": entry.id, "width": entry.size[0], "height": entry.size[1]},
        "model": new.origin.model,
        "sha256": new.origin.sha256,
        "grid": new.origin.grid,
        "kind": "tile" if isinstance(new, NewTiles) else "annotation",
        "count": len(new),
        "classes": [{"name": name, "color": colour} for name, colour in classes],
        "metadata": image_metadata(new.origin.model, new.origin.sha256, now),
    }
    return json.dumps(origin)


def _tiles(new: NewTiles) -> Iterator[str]:
    given = [*map(_classification, new.classes.names, new.classes.colours), ""]
    names = [*new.classes.names, ""]
    given = [text + _mark(new, name) for text, name in zip(given, names, strict=True)]
    for start in range(0, len(new), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        measurements = {name: values[rows] for name, values in new.measurements.items()}
        # UNCLASSIFIED is -1, the last of `given`.
        yield from tile_features(
            new.ids[rows], new.bounds[rows], new.labels[rows], given, measurements
        )


def _areas(new: NewAreas) -> Iterator[str]:
    given = [*map(_classification, new.classes.names, new.classes.colours), ""]
    names = [*new.classes.names, ""]
    labels = np.asarray(new.labels).tolist()
    keys, rows = measurement_texts(new.measurements, len(new))
    for uuid, area, label, row in zip(new.ids, new.areas, labels, rows, strict=True):
        measured = ",".join(key + number for key, number in zip(keys, row, strict=True))
        mark = _mark(new, names[label], shape_text(area.bounds, area.area))
        yield (
            f'{{"type":"Feature","id":"{uuid}","geometry":{shapely.to_geojson(area)},'
            f'"properties":{{"objectType":"annotation",{given[label]}{mark}'
            f'"measurements":{{{measured}}}}}}}'
        )


def _classification(name: str, colour: tuple[int, int, int]) -> str:
    return f'"classification":{class_text(path_class(name), colour)},'


def _mark(new: NewTiles | NewAreas, given: str, shape: str = "") -> str:
    origin = new.origin
    mark = Mark(origin.model, origin.sha256, origin.grid, given, shape)
    return f'"metadata":{json.dumps(mark.metadata())},'
