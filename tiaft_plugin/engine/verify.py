"""Is a store what it says it is: its schema, its hashes, its grid, and its tiles made again."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin.engine import store
from tiaft_plugin.engine.again import Lacking, Source, checks_with_slide
from tiaft_plugin.engine.settings import SETTINGS
from tiaft_plugin.engine.timing import fault_of
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.network.outputs import labels_of

_ROW = {"coordinates": ((4,), "int64"), "tissue": ((), "float32"), "predictions": ((), "int64")}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: `status` is PASS, FAIL, or SKIP where something was lacking."""

    check: str
    status: str
    text: str


def verify_store(
    path: Path | str,
    source: Source | None = None,
    *,
    tiles: int = 16,
    seed: int = 0,
    batch_size: int = 32,
    device: str = "auto",
) -> list[Finding]:
    """Check a store; return what was found, in the order of checking.

    The store by itself: schema, complete, content (CRC-32 of every chunk, hash of the tiles),
    settings, timing, shape and grid. With a `source`, also: slide (fingerprint), coverage (the grid
    and the tissue mask made again have the same tiles), model (SHA-256) and tiles, of which `tiles`
    are drawn with `seed`, extracted again and compared. What goes wrong is a finding, not an
    exception.
    """
    path = Path(path)
    findings = []
    for check, run in _CHECKS.items():
        found = _finding(check, run, path)
        findings.append(found)
        if found.status == "FAIL" and check in ("schema", "complete"):
            return findings
    if source is None:
        slide = store.facts_of(store.open_sound(path))["slide"]["name"]
        text = f"made again only with the slide, {slide} (--slide)"
        return [*findings, Finding("tiles", "SKIP", text)]
    checks = checks_with_slide(
        path, source, tiles=tiles, seed=seed, batch_size=batch_size, device=device
    )
    return findings + list(_until_lacking(checks, path))


def find_slide(path: Path, given: Sequence[Path]) -> Path | None:
    """Return the slide of a store among files and folders that a person named, or None.

    A single file is taken as it is: whether it is the store's slide is checked later.
    """
    if len(given) == 1 and given[0].is_file():
        return given[0]
    try:
        name = store.facts_of(store.open_sound(path))["slide"]["name"]
    except TiaftError:  # which `verify_store` will say
        return None
    candidates = (place if place.name == name else place / name for place in given)
    return next((place for place in candidates if place.exists()), None)


def _finding(check: str, run: Callable[[Path], str], path: Path) -> Finding:
    try:
        return Finding(check, "PASS", run(path))
    except Lacking as lack:
        return Finding(check, "SKIP", str(lack))
    except Exception as error:  # of damaged files, zarr and its codecs raise what they like
        return Finding(check, "FAIL", reason(error))


def _until_lacking(checks: dict[str, Callable[[Path], str]], path: Path) -> Iterator[Finding]:
    """Give findings until one fails on which all others build."""
    for check, run in checks.items():
        found = _finding(check, run, path)
        yield found
        if found.status != "PASS" and check in ("slide", "model"):
            return


def _check_schema(path: Path) -> str:
    facts = store.facts_of(store.open_sound(path))
    return f"{facts['schema']} version {facts['version']}, {facts['kind']}"


def _check_complete(path: Path) -> str:
    opened = store.read_store(path)
    return f"{len(opened)} tiles in {-(-len(opened) // opened.facts['chunk_rows'])} chunks"


def _check_content(path: Path) -> str:
    try:
        store.read_store(path, verify=True)
    except TiaftError as error:
        group = store.open_sound(path)
        numbers = range(group["chunk_crc32"].shape[0])
        damaged = [number for number in numbers if not store.is_written(group, number)]
        if len(damaged) > 1:
            raise TiaftError(f"{error} ({len(damaged)} of {len(numbers)} chunks)") from error
        raise
    return "every chunk has its CRC-32, coordinates and tissue their SHA-256"


def _check_settings(path: Path) -> str:
    facts = store.facts_of(store.open_sound(path))
    again = store.describe({key: facts[key] for key in SETTINGS if key in facts})
    for name in ("settings_sha256", "grid_id"):
        if facts.get(name) != again[name]:
            raise TiaftError(f"{path}: the attributes were changed: {name} is not theirs")
    return "the attributes are those the store was made with"


def _check_timing(path: Path) -> str:
    timing = store.timing_of(store.open_sound(path))
    if timing is None:
        raise Lacking("the store does not say where the time went")
    fault = fault_of(timing)
    if fault:
        raise TiaftError(f"{path}: {store.TIMING} {fault}")
    return f"{timing['tiles_per_second']:.3g} tiles/s"


def _check_shape(path: Path) -> str:
    group = store.open_sound(path)
    facts = store.facts_of(group)
    kind, values = facts["kind"], group[store.ARRAYS[facts["kind"]]]
    count, width = values.shape
    expected: dict[str, tuple] = {store.ARRAYS[kind]: ((count, width), "float32")}
    for name in ("coordinates", "tissue", *(["predictions"] if kind == "predictions" else [])):
        expected[name] = ((count, *_ROW[name][0]), _ROW[name][1])
    for name in store.beside_of(facts):
        expected[name] = ((count, *store.BESIDE[name][0]), store.BESIDE[name][1])
    expected["chunk_crc32"] = ((-(-count // facts["chunk_rows"]),), "int64")
    for name, (shape, dtype) in expected.items():
        found = group[name]
        if found.shape != shape or found.dtype != dtype:
            raise TiaftError(f"{path}: {name} is {found.dtype} {found.shape}, not {dtype} {shape}")
    if kind == "predictions":
        _check_predictions(path, group, facts, width)
    return f"{count} tiles × {width} {store.ARRAYS[kind]}"


def _check_predictions(path: Path, group: Any, facts: dict, width: int) -> None:
    if width != len(facts["classes"]):
        raise TiaftError(f"{path}: {width} columns for {len(facts['classes'])} classes")
    for number in range(group["chunk_crc32"].shape[0]):
        rows = store.chunk_slice(number, facts["chunk_rows"])
        labels = labels_of(group["probabilities"][rows], multilabel=store.is_multilabel(facts))
        if not np.array_equal(labels, group["predictions"][rows]):
            raise TiaftError(
                f"{path}: predictions of chunk {number} are not those of the probabilities"
            )


def _check_grid(path: Path) -> str:
    opened = store.read_store(path)
    grid, places = opened.facts["grid"], np.asarray(opened.coordinates[:])
    size, stride = grid["tile_size"][::-1], grid["stride"][::-1]  # TIAToolbox's are (height, width)
    corners, ends = places[:, :2], places[:, 2:]
    if not (ends - corners == size).all():
        raise TiaftError(f"{path}: some tiles are not of {size[0]}×{size[1]} px")
    if (corners % stride).any():
        number = int(np.flatnonzero((corners % stride).any(axis=1))[0])
        raise TiaftError(f"{path}: tile {number} at {_at(corners[number])} is not on the grid")
    unique, counts = np.unique(corners, axis=0, return_counts=True)
    if (counts > 1).any():
        raise TiaftError(f"{path}: the tile at {_at(unique[counts > 1][0])} is there twice")
    limit = np.ceil(np.asarray(opened.facts["slide"]["size"]) / opened.scale)
    if (corners < 0).any() or (corners >= limit).any():
        raise TiaftError(f"{path}: some tiles lie beyond the slide")
    if (np.asarray(opened.tissue[:]) < grid["min_tissue"]).any():
        raise TiaftError(f"{path}: some tiles have less tissue than {grid['min_tissue']:.0%}")
    return f"{len(places)} tiles of {size[0]}×{size[1]} px on the grid, none twice"


def _at(place: np.ndarray) -> str:
    return f"({place[0]}, {place[1]})"


_CHECKS: dict[str, Callable[[Path], str]] = {
    "schema": _check_schema,
    "complete": _check_complete,
    "content": _check_content,
    "settings": _check_settings,
    "timing": _check_timing,
    "shape": _check_shape,
    "grid": _check_grid,
}
