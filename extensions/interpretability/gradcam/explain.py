"""``tiaft interpret gradcam``: sure tiles of each class explained, and whole slides."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.interpretability.gradcam.cams import (
    Maps,
    cams,
    enlarged,
    usual_layer,
    weighted,
)
from tiaft_extensions.interpretability.gradcam.heatmap import SlideMap, over, write_pyramid
from tiaft_extensions.interpretability.gradcam.sanity import Step, check_sanity
from tiaft_extensions.interpretability.gradcam.scores import keep_scores, measurement_names
from tiaft_extensions.interpretability.pick import SURE, class_index, confident_tiles
from tiaft_extensions.interpretability.report import png_bytes
from tiaft_extensions.interpretability.subject import Subject
from tiaft_plugin.engine.predictions import predictions_of
from tiaft_plugin.engine.sinks import Outlet
from tiaft_plugin.engine.store import Store
from tiaft_plugin.engine.store_tiles import read_store_tiles, refuse_other_slide
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.tileset import TileSet

SANITY_TILES = 4  # of each class


@dataclass(frozen=True)
class How:
    """What is asked for: `layer` None is the last one; `at_least` is what a sure tile exceeds."""

    layer: str | None = None
    count: int = 6
    at_least: float = SURE
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Sure tiles of a class, uint8 (n, H, W, 3), with names, maps and the sanity check's steps."""

    cls: str
    names: list[str]
    tiles: np.ndarray
    maps: Maps
    steps: list[Step]


@dataclass(frozen=True)
class SlideResult:
    """A slide explained for a class: the picture (H, W, 3), and the file of its heat map."""

    slide: str
    cls: str
    picture: np.ndarray
    file: str
    tiles: int


@dataclass
class Found:
    """All that a run found; `notes` says what is missing, and why."""

    examples: list[Examples] = field(default_factory=list)
    slides: list[SlideResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def explain_tiles(subject: Subject, tileset: TileSet, classes: Sequence[str], how: How) -> Found:
    """Explain sure tiles of classes; without any, of every class that set and model share.

    Raises TiaftError where a class that was asked for has no sure tile, or none has any.
    """
    shared = [name for name in subject.classes if tileset.counts.get(name)]
    if subject.classes and not shared and not classes:
        raise TiaftError(
            f"{tileset.root} has no class of {subject.name}: it has {', '.join(tileset.classes)}, "
            f"the model {', '.join(subject.classes)}"
        )
    found = Found()
    for cls in classes or shared or [""]:
        try:
            tiles, rows = confident_tiles(
                subject, tileset, cls, at_least=how.at_least, count=how.count, seed=how.seed
            )
        except TiaftError as error:
            if classes or not subject.classes:
                raise
            found.notes.append(str(error))
            continue
        names = [tileset.shown(tileset.files[row]) for row in rows]
        found.examples.append(_explained(subject, cls, names, tiles, how))
    if not found.examples:
        raise TiaftError("; ".join(found.notes))
    return found


def explain_slide(
    subject: Subject,
    store: Store,
    slide: Path,
    classes: Sequence[str],
    how: How,
    folder: Path,
    outlets: Iterable[Outlet] = (),
    stain_target: Path | None = None,
) -> Found:
    """Explain every tile of a store for `classes`; write heat maps and sinks into `folder`.

    Maps and scores are those of Grad-CAM++ times the tile's probability (`weighted`). Scores, the
    mean and the maximum of a tile's map, are kept beside the store. Raises TiaftError where store,
    slide and model do not belong together.
    """
    check_store(subject, store)
    refuse_other_slide(store, slide)
    bounds = store.bounds()
    layer = how.layer or usual_layer(subject)
    canvas: dict[str, SlideMap] = {}
    means = {cls: np.zeros(len(store), np.float32) for cls in classes}
    peaks = {cls: np.zeros(len(store), np.float32) for cls in classes}
    with progress(len(store), slide.name) as bar:
        for rows, tiles in read_store_tiles(store, slide, stain_target=stain_target):
            at = list(rows)
            for cls in classes:
                maps = weighted(cams(subject, tiles, cls, layer))
                means[cls][at], peaks[cls][at] = maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))
                if cls not in canvas:
                    canvas[cls] = _canvas(store, bounds, maps)
                canvas[cls].add(bounds[at], maps)
            bar.update(len(at))
    scores: dict[str, np.ndarray] = {}
    for cls in classes:
        names = measurement_names(cls, how.layer or "")
        scores |= dict(zip(names, (means[cls], peaks[cls]), strict=True))
    keep_scores(store.path, store.tile_ids(bounds), scores)
    predictions = predictions_of(store, slide)
    for outlet in outlets:
        outlet.write(predictions, outlet.target or folder / f"{store.path.stem}{outlet.suffix}")
    found = Found()
    for cls in classes:
        file = f"{store.path.stem}-{plain_name(cls)}.ome.tiff"
        pixels = canvas[cls].over_slide(slide)
        write_pyramid(folder / file, pixels, _mpp(store, pixels))
        found.slides.append(SlideResult(slide.name, cls, pixels, file, len(store)))
        _add_sure(found, subject, store, slide, cls, how, stain_target)
    return found


def check_store(subject: Subject, store: Store) -> None:
    """Raise TiaftError unless a store holds this model's predictions, of one tile or more."""
    model = store.facts["model"]
    if store.kind != "predictions":
        raise TiaftError(
            f"{store.path} holds features: `tiaft predict` makes stores of predictions"
        )
    if model["sha256"] != subject.sha256:
        raise TiaftError(
            f"{store.path} was predicted by {model['name']} ({model['sha256'][:8]}), not by "
            f"{subject.name} ({subject.sha256[:8]}): pass that model"
        )
    if not len(store):
        raise TiaftError(f"{store.path} has no tiles")


def write_files(folder: Path, found: Found) -> None:
    """Write a picture a tile (the tile, Grad-CAM++ and Grad-CAM over it), and the two tables."""
    tiles, steps = [], []
    for examples in found.examples:
        inside = folder / plain_name(examples.cls)
        inside.mkdir(exist_ok=True)
        for number, (name, pixels) in enumerate(zip(examples.names, panels(examples), strict=True)):
            file = inside / f"{number + 1:02d}-{plain_name(_without_suffix(name))}.png"
            file.write_bytes(png_bytes(np.concatenate(pixels, axis=1)))
            plus, plain = examples.maps.plus[number], examples.maps.plain[number]
            numbers = [examples.maps.probability[number], plus.mean(), plus.max()]
            numbers += [plain.mean(), plain.max()]
            shown = [f"{value:.6g}" for value in numbers]
            tiles.append([name, examples.cls, *shown, file.relative_to(folder).as_posix()])
        for step in examples.steps:
            for name, plus, plain in zip(examples.names, step.plus, step.plain, strict=False):
                steps.append([examples.cls, name, step.part, f"{plus:.4f}", f"{plain:.4f}"])
    head = "file,class,probability,plus_mean,plus_max,gradcam_mean,gradcam_max,picture"
    write_csv(folder / "tiles.csv", head.split(","), tiles)
    write_csv(folder / "sanity.csv", ["class", "file", "random_from", "plus", "gradcam"], steps)


def panels(examples: Examples) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return each tile, and Grad-CAM++ and Grad-CAM over it, uint8 (H, W, 3)."""
    size = examples.tiles.shape[1]
    return [
        (tile, over(tile, plus, outline=True), over(tile, plain, outline=True))
        for tile, plus, plain in zip(
            examples.tiles,
            enlarged(examples.maps.plus, size),
            enlarged(examples.maps.plain, size),
            strict=True,
        )
    ]


def plain_name(text: str) -> str:
    """Return a text as a file can be called."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "_"


def _without_suffix(name: str) -> str:
    """Return the last part of a tile's name; one on a slide, "s.ome x=5 y=7", has no suffix."""
    return re.sub(r"\.\w+$", "", name.rpartition("/")[2])


def _explained(
    subject: Subject, cls: str, names: list[str], tiles: np.ndarray, how: How
) -> Examples:
    maps = cams(subject, tiles, cls, how.layer)
    steps = check_sanity(subject, tiles[:SANITY_TILES], cls, how.layer, how.seed)
    return Examples(cls, names, tiles, maps, steps)


def _add_sure(
    found: Found,
    subject: Subject,
    store: Store,
    slide: Path,
    cls: str,
    how: How,
    stain_target: Path | None,
) -> None:
    """Add the slide's surest tiles of a class, or a note where it has none."""
    sure = np.asarray(store.values[:])[:, class_index(subject, cls)]
    rows = np.argsort(-sure, kind="stable")[: how.count]
    rows = np.sort(rows[sure[rows] > how.at_least])
    if not len(rows):
        found.notes.append(
            f"{slide.name} has no tile of {cls} with p > {how.at_least:g}: the highest is "
            f"{sure.max():.4g}"
        )
        return
    read = read_store_tiles(store, slide, rows.tolist(), stain_target=stain_target)
    tiles = np.concatenate([some for _, some in read])
    corners = np.asarray(store.coordinates[:])[rows][:, :2] * store.scale
    names = [f"{slide.stem} x={x:.0f} y={y:.0f}" for x, y in corners]
    found.examples.append(_explained(subject, cls, names, tiles, how))


def _canvas(store: Store, bounds: np.ndarray, maps: np.ndarray) -> SlideMap:
    width, height = store.facts["slide"]["size"]
    return SlideMap((width, height), float(bounds[0, 2] - bounds[0, 0]) / maps.shape[2])


def _mpp(store: Store, pixels: np.ndarray) -> tuple[float, float]:
    """Return the µm/px of a slide's picture, x and y."""
    facts: dict[str, Any] = store.facts["slide"]
    x, y = (
        mpp * size / drawn
        for mpp, size, drawn in zip(facts["mpp"], facts["size"], pixels.shape[1::-1], strict=True)
    )
    return x, y
