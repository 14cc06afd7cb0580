"""The objects of one image in Java's memory."""

import json
import logging
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jpype
import numpy as np
import shapely
from jpype import JClass, JLong

from tiaft_plugin.errors import first_line
from tiaft_plugin.qupath.java.image_data import Annotation
from tiaft_plugin.qupath.java.loops import run, taken
from tiaft_plugin.qupath.java.objects import (
    annotation,
    area,
    bounds,
    classes_of,
    ids,
    integer,
    marks,
    qupath_class,
    shapes,
    tile,
)
from tiaft_plugin.qupath.java.start import java_errors
from tiaft_plugin.qupath.objects import Classes, Found, NewAreas, NewTiles
from tiaft_plugin.qupath.project.project_file import ImageEntry, packed

_ROWS = 500_000  # tiles handed to Java at once


class ImageData:
    """The objects of an image, in Java's memory; nothing is written but by `save_to`."""

    def __init__(self, entry: ImageEntry, data: Any, coloured: Collection[str] = ()):
        self.entry = entry
        self._data = data
        self._coloured = frozenset(coloured)  # classes whose colour is the project's
        self._hierarchy = data.getHierarchy()
        self._marked: Any = None  # java.util.List of what `found` found, in its order
        self._saved = time.time()

    def found(self) -> Found:
        """Return the objects that carry a mark."""
        with java_errors(self.entry.data):
            objects = self._hierarchy.getObjects(None, qupath_class("objects.PathROIObject").class_)
            different, which = marks(objects)
            known = np.array([mark is not None for mark in different], dtype=bool)
            rows = np.flatnonzero(known[which])
            self._marked = marked = taken(objects, rows)
            return Found(
                ids=ids(marked),
                bounds=bounds(marked),
                marks=[different[each] for each in which[rows].tolist()],
                classes=classes_of(marked),
                shapes=shapes(marked),
                unmarked=int(objects.size()) - len(rows),
            )

    def measurements(self, rows: Collection[int] | np.ndarray) -> list[dict[str, float]]:
        """Return the numbers of a few objects, by their rows in what `found` returned last."""
        with java_errors(self.entry.data):
            objects = taken(self._marked, np.asarray(rows, dtype=np.int64))
            return [
                {str(name): float(value) for name, value in each.getMeasurements().items()}
                for each in objects
            ]

    def remove(self, rows: Collection[int] | np.ndarray) -> None:
        """Remove objects by their rows in what `found` returned last; once after each `found`.

        What lies inside them in QuPath's hierarchy stays, and moves up.
        """
        if not len(rows):
            return
        with java_errors(self.entry.data):
            leaving = taken(self._marked, np.asarray(rows, dtype=np.int64))
            self._hierarchy.removeObjects(leaving, True)
        self._marked = None  # so that Java can forget them

    def add_tiles(self, new: NewTiles, rows: np.ndarray | None = None) -> None:
        """Add tiles, all or the given rows of them, with their marks."""
        with java_errors(self.entry.data):
            classes = self._path_classes(new.classes)
            rows = np.arange(len(new)) if rows is None else np.asarray(rows, dtype=np.int64)
            for start in range(0, len(rows), _ROWS):
                some = rows[start : start + _ROWS]
                self._hierarchy.addObjects(run(tile(new, classes, some), len(some)))

    def add_areas(self, new: NewAreas, rows: np.ndarray | None = None) -> None:
        """Add annotations, all or the given rows of them, with their marks."""
        with java_errors(self.entry.data):
            classes = [*self._path_classes(new.classes), None]
            objects = JClass("java.util.ArrayList")()
            for row in range(len(new)) if rows is None else rows:
                objects.add(area(new, int(row), classes[new.labels[row]]))
            self._hierarchy.addObjects(objects)

    def _path_classes(self, classes: Classes) -> list[Any]:
        """Return QuPath's classes, with the given colours where the project has none for them.

        That is what QuPath shows later: the project's list gets the classes it lacks.
        """
        found = []
        for name, colour in zip(classes.names, classes.colours, strict=True):
            found.append(qupath_class("objects.classes.PathClass").fromString(name))
            if str(found[-1]) not in self._coloured:
                found[-1].setColor(integer(packed(colour)))
        return found

    def annotations(self) -> list[Annotation]:
        """Return the image's annotations; one whose outline QuPath cannot tell is logged."""
        with java_errors(self.entry.data):
            found = []
            for each in self._hierarchy.getAnnotationObjects():
                try:
                    found.append(annotation(each))
                except (jpype.JException, shapely.errors.ShapelyError) as error:
                    logging.getLogger(__name__).warning(
                        "%s: annotation %s has no outline that can be read (%s): left out",
                        self.entry.name, each.getID(), first_line(error),
                    )  # fmt: skip
            return found

    def save_to(self, path: Path) -> None:
        """Write what QuPath keeps in ``data.qpdata`` to exactly this file.

        Raises Stopped where the disk is full.
        """
        with java_errors(path):
            stream = JClass("java.io.FileOutputStream")(str(path))
            qupath_class("io.PathIO").writeImageData(stream, self._data)
        self._saved = path.stat().st_mtime

    def summary(self) -> dict[str, Any]:
        """Return what QuPath keeps in ``summary.json`` beside the data that were saved last."""
        moment = JLong(int(self._saved * 1000))
        try:
            writer = JClass("qupath.lib.projects.DefaultProject$ImageDataSummary")
            made_by = writer.class_.getDeclaredConstructors()[0]
            made_by.setAccessible(True)
            return json.loads(str(made_by.newInstance(self._data, moment).toString()))
        except (TypeError, IndexError, ValueError, jpype.JException):
            # Another QuPath has it otherwise, or wants to open the slide for it.
            count = int(self._hierarchy.nObjects()) + 1  # QuPath counts the image, too
            return {"timestamp": int(moment), "hierarchy": {"nObjects": count}}
