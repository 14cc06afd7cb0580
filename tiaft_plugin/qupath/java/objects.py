"""QuPath's objects made of rows of numbers, and told as rows again."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import jpype
import numpy as np
import shapely
from jpype import JClass, JDouble, JLong, JObject

from tiaft_plugin.qupath.java.image_data import Annotation
from tiaft_plugin.qupath.java.loops import (
    action,
    always,
    column,
    constructor,
    fixed,
    if_true,
    kinds,
    made,
    method,
    nothing_of,
    numbers,
    of_argument,
    of_result,
    protected,
    row_function,
    static,
    table,
)
from tiaft_plugin.qupath.marks import HIDDEN, SHOWN, Mark, mark_of, shape_text
from tiaft_plugin.qupath.objects import NewAreas, NewTiles


@cache
def qupath_class(name: str) -> Any:
    """Return a class of QuPath's by its name after ``qupath.lib.``."""
    return JClass(f"qupath.lib.{name}")


class _Handles:
    """What is asked of each object (loops.py), put together once a process."""

    def __init__(self) -> None:
        self.object = qupath_class("objects.PathObject")
        self.text, self.map = JClass("java.lang.String"), JClass("java.util.Map")
        self.uuid = JClass("java.util.UUID")
        roi = qupath_class("roi.interfaces.ROI")
        self.path_class = method(
            self.object, "getPathClass", qupath_class("objects.classes.PathClass")
        )
        of_roi = method(self.object, "getROI", roi)
        self.bounds = [
            of_result(of_roi, method(roi, name, JDouble))
            for name in ("getBoundsX", "getBoundsY", "getBoundsWidth", "getBoundsHeight")
        ]
        of_id = method(self.object, "getID", self.uuid)
        self.id_halves = [
            of_result(of_id, method(self.uuid, name, JLong))
            for name in ("getMostSignificantBits", "getLeastSignificantBits")
        ]
        self.metadata = method(self.object, "getMetadata", self.map)
        # Asked for its metadata, an object of QuPath 0.6 makes room for some.
        self.can_say = hasattr(self.object, "hasMetadata")

    def metadata_value(self, name: str) -> Any:
        """Return a handle that gives an object's metadata of a name, or null."""
        anything = JClass("java.lang.Object")
        value = of_result(
            self.metadata, fixed(method(self.map, "get", anything, anything), 1, self.text(name))
        )
        if not self.can_say:
            return value
        says = method(self.object, "hasMetadata", jpype.JBoolean)
        return if_true(says, value, nothing_of(self.object, anything))


@cache
def _handles() -> _Handles:
    return _Handles()


def marks(objects: Any) -> tuple[list[Mark | None], np.ndarray]:
    """Return the different marks of objects, and which of them each has, (n,)."""
    hidden, which_hidden = kinds(objects, _handles().metadata_value(HIDDEN))
    shown, which_shown = kinds(objects, _handles().metadata_value(SHOWN))
    pairs = which_hidden * len(shown) + which_shown
    different, which = np.unique(pairs, return_inverse=True)
    texts = [(_text(shown[pair % len(shown)]), _text(hidden[pair // len(shown)]))
             for pair in different.tolist()]  # fmt: skip
    return [mark_of(*each) for each in texts], which


def _text(text: Any) -> str | None:
    return None if text is None else str(text)


def bounds(objects: Any) -> np.ndarray:
    """Return x0, y0, x1, y1 of each object, (n, 4) float64."""
    x, y, width, height = (numbers(objects, each) for each in _handles().bounds)
    return np.stack([x, y, x + width, y + height], axis=1)


def ids(objects: Any) -> list[UUID]:
    """Return each object's id."""
    high, low = (numbers(objects, each).view(np.uint64).tolist() for each in _handles().id_halves)
    return [UUID(int=a << 64 | b) for a, b in zip(high, low, strict=True)]


def classes_of(objects: Any) -> list[str | None]:
    """Return each object's class as QuPath writes it, or None."""
    different, which = kinds(objects, _handles().path_class)
    names = [_text(each) for each in different]
    return [names[each] for each in which.tolist()]


def shapes(objects: Any) -> list[str]:
    """Return `shape_text` of each annotation, and nothing for tiles."""
    is_annotation = method(_handles().object, "isAnnotation", jpype.JBoolean)
    texts = [""] * int(objects.size())
    for row in np.flatnonzero(numbers(objects, is_annotation)).tolist():
        texts[row] = _shape(objects.get(row).getROI())
    return texts


def _shape(roi: Any) -> str:
    x, y = float(roi.getBoundsX()), float(roi.getBoundsY())
    right, below = x + float(roi.getBoundsWidth()), y + float(roi.getBoundsHeight())
    return shape_text((x, y, right, below), float(roi.getArea()))


def integer(value: int) -> Any:
    """Return a ``java.lang.Integer``."""
    return JObject(value, JClass("java.lang.Integer"))


def tile(new: NewTiles, classes: Sequence[Any], rows: np.ndarray) -> Any:
    """Return the row function that makes the tiles of `rows`; `classes` are QuPath's."""
    plane = qupath_class("regions.ImagePlane")
    roi, roi_class = qupath_class("roi.interfaces.ROI"), qupath_class("objects.classes.PathClass")
    values = qupath_class("measurements.MeasurementList")
    x0, y0, x1, y1 = np.asarray(new.bounds, dtype=np.float64)[rows].T
    rectangle = static(qupath_class("roi.ROIs"), "createRectangleROI", roi, *[JDouble] * 4, plane)
    place = row_function(
        fixed(rectangle, 4, plane.getDefaultPlane()),
        *map(column, (x0, y0, x1 - x0, y1 - y0)),
    )
    create = static(
        qupath_class("objects.PathObjects"),
        "createTileObject",
        _handles().object,
        roi,
        roi_class,
        values,
    )
    labels = np.asarray(new.labels)[rows]  # UNCLASSIFIED is -1: the last, which is none
    given = table(roi_class, [*classes, None], np.where(labels < 0, len(classes), labels))
    make = row_function(create, place, given, _measured(new.measurements, rows))
    return made(make, *_identity(new, classes, rows))


def _measured(measurements: Mapping[str, np.ndarray], rows: np.ndarray) -> Any:
    """Return the row function that makes the list of a row's measurements (float32)."""
    values = qupath_class("measurements.MeasurementList")
    kind = qupath_class("measurements.MeasurementList$MeasurementListType")
    create = static(
        qupath_class("measurements.MeasurementListFactory"), "createMeasurementList",
        values, jpype.JInt, kind,
    )  # fmt: skip
    put = method(values, "put", None, _handles().text, JDouble)
    puts = [
        action(fixed(put, 1, _handles().text(name)), column(_float32(numbers_, rows)))
        for name, numbers_ in measurements.items()
    ]
    # Closed, lists of the same names share them, in memory and in the file.
    close = action(method(values, "close", None))
    return made(always(fixed(create, 0, integer(len(puts)), kind.FLOAT)), *puts, close)


def _float32(numbers_: np.ndarray, rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite, as QuPath has it in such a list
        return np.asarray(numbers_)[rows].astype(np.float32, copy=False)


def _identity(new: NewTiles, classes: Sequence[Any], rows: np.ndarray) -> list[Any]:
    """Return the actions that give tiles their ids and their marks."""
    uuid, text = _handles().uuid, _handles().text
    data = b"".join(new.ids[row].bytes for row in rows.tolist())
    halves = np.frombuffer(data, dtype=">i8").reshape(-1, 2).astype(np.int64)
    ids = row_function(constructor(uuid, JLong, JLong), column(halves[:, 0]), column(halves[:, 1]))
    actions = [action(method(_handles().object, "setID", None, uuid), ids)]
    given = [str(each) for each in classes] + [""]  # as QuPath writes them
    metadata = [_mark(new, each).metadata() for each in given]
    labels = np.asarray(new.labels)[rows]
    which = np.where(labels < 0, len(classes), labels)
    for name in (SHOWN, HIDDEN):
        # The same few strings for all tiles: Java keeps and writes each once.
        value = table(text, [text(each[name]) for each in metadata], which)
        actions.append(action(fixed(_put_metadata(), 1, text(name)), value))
    return actions


@cache
def _put_metadata() -> Any:
    """Return a handle (object, name, value) that gives an object metadata."""
    text = _handles().text
    if not _handles().can_say:  # QuPath 0.5 reads and writes a detection's, but hands it out sealed
        return protected(_handles().object, "storeMetadataValue", text, text)
    anything = JClass("java.lang.Object")
    put = method(_handles().map, "put", anything, anything, anything)
    put = of_argument(put, _handles().metadata)
    return put.asType(put.type().changeReturnType(JClass("java.lang.Void").TYPE))


def _mark(new: NewTiles | NewAreas, given: str, shape: str = "") -> Mark:
    return Mark(new.origin.model, new.origin.sha256, new.origin.grid, given, shape)


def area(new: NewAreas, row: int, path_class: Any) -> Any:
    """Return the annotation of a row, of QuPath's class or None."""
    outline = JClass("org.locationtech.jts.io.WKBReader")().read(shapely.to_wkb(new.areas[row]))
    plane = qupath_class("regions.ImagePlane").getDefaultPlane()
    roi = qupath_class("roi.GeometryTools").geometryToROI(outline, plane)
    made_ = qupath_class("objects.PathObjects").createAnnotationObject(roi, path_class)
    made_.setID(_handles().uuid.fromString(str(new.ids[row])))
    values = made_.getMeasurementList()
    for name, numbers_ in new.measurements.items():
        values.put(name, float(numbers_[row]))
    values.close()
    given = "" if path_class is None else str(path_class)
    for name, text in _mark(new, given, _shape(roi)).metadata().items():
        made_.getMetadata().put(name, text)
    return made_


def annotation(each: Any) -> Annotation:
    """Return what is told of one of QuPath's annotations."""
    outline = qupath_class("roi.GeometryTools").roiToGeometry(each.getROI())
    flat = JClass("org.locationtech.jts.io.WKBWriter")(2)
    metadata = each.getMetadata()
    return Annotation(
        str(each.getID()),
        _text(each.getName()),
        _text(each.getPathClass()),
        shapely.from_wkb(bytes(flat.write(outline))),
        bool(each.isLocked()),
        mark_of(_text(metadata.get(SHOWN)), _text(metadata.get(HIDDEN))),
    )
