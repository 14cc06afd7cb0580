"""A project on disk, and the objects of its images without QuPath."""

import json
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import numpy as np

from tiaft_plugin.qupath.marks import Mark, shape_text
from tiaft_plugin.qupath.objects import Found, NewAreas, NewTiles
from tiaft_plugin.qupath.project.project_file import ImageEntry


def make_project(
    folder: Path, slides: Sequence[Path], sizes: Sequence[tuple[int, int]], **members: object
) -> Path:
    """Write a project of these slides as QuPath 0.6 does; return its .qpproj."""
    images = [
        {
            "serverBuilder": {
                "builderType": "uri",
                "providerClassName": "qupath.lib.images.servers.openslide.OpenslideServerBuilder",
                "uri": slide.absolute().as_uri(),
                "args": [],
                "metadata": {
                    "name": slide.name,
                    "width": width,
                    "height": height,
                    "pixelCalibration": {
                        "pixelWidth": {"value": 1.0, "unit": "µm"},
                        "pixelHeight": {"value": 1.0, "unit": "µm"},
                    },
                },
            },
            "entryID": number,
            "randomizedName": f"random-{number}",
            "imageName": slide.name,
            "metadata": {},
        }
        for number, (slide, (width, height)) in enumerate(zip(slides, sizes, strict=True), start=1)
    ]
    path = folder / "project.qpproj"
    folder.mkdir(parents=True)
    content = {
        "version": "0.6.0",
        "createTimestamp": 1,
        "modifyTimestamp": 1,
        "uri": path.absolute().as_uri(),
        "lastID": len(images),
        "images": images,
        **members,
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


class FakeImage:
    """The objects of an image, kept as JSON where QuPath keeps its own data file."""

    def __init__(self, entry: ImageEntry):
        self.objects = json.loads(entry.data.read_text()) if entry.data.exists() else []

    def found(self) -> Found:
        own = [each for each in self.objects if each["mark"]]
        return Found(
            [UUID(each["id"]) for each in own],
            np.array([each["bounds"] for each in own], dtype=float).reshape(-1, 4),
            [Mark(*each["mark"]) for each in own],
            [each["class"] for each in own],
            [each["shape"] for each in own],
            unmarked=len(self.objects) - len(own),
        )

    def remove(self, rows: Sequence[int]) -> None:
        own = [each for each in self.objects if each["mark"]]
        gone = {own[row]["id"] for row in rows}
        self.objects = [each for each in self.objects if each["id"] not in gone]

    def add_tiles(self, new: NewTiles, rows: Sequence[int] | None = None) -> None:
        for row in range(len(new)) if rows is None else rows:
            self._add(new, row, new.bounds[row].tolist(), "")

    def add_areas(self, new: NewAreas, rows: Sequence[int] | None = None) -> None:
        for row in range(len(new)) if rows is None else rows:
            area = new.areas[row]
            self._add(new, row, list(area.bounds), shape_text(area.bounds, area.area))

    def _add(self, new: NewTiles | NewAreas, row: int, bounds: list[float], shape: str) -> None:
        label = int(new.labels[row])
        given = new.classes.names[label] if label >= 0 else ""
        mark = [new.origin.model, new.origin.sha256, new.origin.grid, given, shape]
        values = {name: float(column[row]) for name, column in new.measurements.items()}
        self.objects.append(
            {"id": str(new.ids[row]), "bounds": bounds, "class": given or None, "mark": mark,
             "shape": shape, "measurements": values}
        )  # fmt: skip

    def save_to(self, path: Path) -> None:
        path.write_text(json.dumps(self.objects))

    def summary(self) -> dict:
        return {"hierarchy": {"nObjects": len(self.objects)}}
