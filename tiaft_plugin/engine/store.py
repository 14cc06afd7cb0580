"""The store of a slide's features or predictions: one schema, written chunk by chunk, verifiable.

``docs/formats.md`` describes it. A chunk counts as written when its CRC-32 stands in
``chunk_crc32``, which is put there after the chunk itself, in all its arrays: a run interrupted at
any instant goes on with the first chunk that has none, and a store is complete when every chunk has
one.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import zarr

from tiaft_plugin.engine.settings import differences, without_names
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_folder_atomically
from tiaft_plugin.network.outputs import labels_of
from tiaft_plugin.tiles.colour import COLOUR_WIDTH

SCHEMA = "tiaft-tiles"
VERSION = 2  # 1 had no `beside`, and is still read and gone on with
CHUNK_ROWS = 512
MARKS = 8  # chunks that are marked in one file: what one worker writes, no other does
ARRAYS = {"features": "features", "predictions": "probabilities"}
BESIDE: dict[str, tuple[tuple[int, ...], str]] = {  # a row's shape and dtype
    "colour": ((COLOUR_WIDTH,), "float32"),
    "normalised": ((), "bool"),
}
TIMING = "tiaft_timing"  # an attribute of its own: it alone differs from run to run
Group = Any  # zarr.Group, whose items zarr types as unions of all they could be
_CIRCUMSTANCES = ("batch_size", "threads", "device", "versions", "compute")
_NEEDED = (
    "schema",
    "version",
    "kind",
    "slide",
    "model",
    "settings_sha256",
    "tiles_sha256",
    "sinks",
)
_NOT_WRITTEN = -1
_GRID = ("tile_size", "stride", "resolution", "units")  # a mask picks tiles, it does not move them
_TILE_NAMESPACE = UUID("6f1d1c1e-6a0e-5d0c-9a39-2f7f3c1b7d52")  # arbitrary, and never to change


@dataclass(frozen=True)
class Store:
    """A complete store, opened for reading.

    `values` is (N, D) float32: features, or class probabilities; `coordinates` (N, 4) int64 x0,
    y0, x1, y1 at the read resolution; `tissue` (N,) float32, the tissue fraction of each tile.
    `facts` are its attributes. `colour` is (N, 54) float32 (`colour_features`), `normalised` (N,)
    bool, where stain normalisation was asked for; None in a store without. `timing` says where the
    time went (``engine.timing``), if it was noted: it alone differs from run to run.
    """

    path: Path
    kind: str
    values: zarr.Array
    coordinates: zarr.Array
    tissue: zarr.Array
    facts: dict[str, Any]
    colour: zarr.Array | None = None
    normalised: zarr.Array | None = None
    timing: dict[str, Any] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the columns; none in a feature store."""
        return tuple(self.facts["classes"])

    @property
    def multilabel(self) -> bool:
        """Whether a tile has any number of the classes, not one of them."""
        return is_multilabel(self.facts)

    @property
    def scale(self) -> np.ndarray:
        """What coordinates are multiplied by to give baseline pixels, x and y."""
        return np.asarray(self.facts["scale_to_baseline"], dtype=np.float64)

    def __len__(self) -> int:
        return self.values.shape[0]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give (bounds (n, 4) float64 in baseline pixels, values (n, D)) chunk by chunk.

        Raises TiaftError for what is not what was written.
        """
        group, every = open_sound(self.path), self.bounds()
        for number in range(group["chunk_crc32"].shape[0]):
            values = read_chunk(group, number)
            if values is None:
                raise _damaged(self.path, number)
            yield every[chunk_slice(number, self.facts["chunk_rows"])], values

    def bounds(self) -> np.ndarray:
        """Return where all tiles lie, (N, 4) float64 in baseline pixels. Raises TiaftError."""
        try:
            coordinates, tissue = np.asarray(self.coordinates[:]), np.asarray(self.tissue[:])
        except Exception as error:  # as in read_chunk
            raise _misplaced(self.path) from error
        if self.facts["tiles_sha256"] != _hash_of_tiles(coordinates, tissue):
            raise _misplaced(self.path)
        return coordinates * np.tile(self.scale, 2)

    def tile_ids(self, bounds: np.ndarray) -> list[UUID]:
        """Return a UUID for each tile, from slide, grid and model: the same in every run."""
        prefix = ":".join(
            (
                self.facts["slide"]["fingerprint"],
                self.facts["grid_id"],
                self.facts["model"]["sha256"],
            )
        )
        return [uuid5(_TILE_NAMESPACE, f"{prefix}:{x:.3f}:{y:.3f}") for x, y in bounds[:, :2]]


def read_store(path: Path | str, *, verify: bool = False) -> Store:
    """Open a complete store; `verify` also compares every chunk with its CRC-32.

    Raises TiaftError for what is no store, incomplete, damaged, or of a newer version.
    """
    path = Path(path)
    group = open_sound(path)
    facts = facts_of(group)
    missing = count_missing(group)
    if missing:
        total = group["chunk_crc32"].shape[0]
        raise TiaftError(
            f"{path} is incomplete ({total - missing} of {total} chunks): run the same command "
            "again, it goes on where it stopped"
        )
    values = group[ARRAYS[facts["kind"]]]
    beside = {name: group[name] for name in beside_of(facts)}
    timing = timing_of(group)
    store = Store(
        path,
        facts["kind"],
        values,
        group["coordinates"],
        group["tissue"],
        facts,
        **beside,
        timing=timing,
    )
    if verify:
        for _ in store.blocks():
            pass
    return store


def open_for_writing(
    path: Path,
    facts: dict[str, Any],
    coordinates: np.ndarray,
    tissue: np.ndarray,
    *,
    width: int,
    beside: Sequence[str] = (),
    overwrite: bool = False,
    begun: bool = False,
) -> Group:
    """Create a store with nothing written yet, or open the one that the same settings began.

    `facts` are `describe`'s; `beside` names the arrays of BESIDE that a new store has (one that
    was begun keeps to its own). With `overwrite`, any store of tiaft's at `path` is replaced; what
    is no store never is. With `begun` there must be one. Raises TiaftError.
    """
    tiles_sha256 = _hash_of_tiles(coordinates, tissue)
    facts = {**facts, "tiles_sha256": tiles_sha256, "beside": sorted(beside)}
    if path.exists():
        open_any(path)  # raises for what is no store
        if not overwrite:
            return _go_on(path, facts)
    if begun:
        raise TiaftError(f"{path} is not there any more: run the same command again")
    with write_folder_atomically(path, overwrite=overwrite) as temporary:
        _create(temporary, facts, coordinates, tissue, width)
    return zarr.open_group(path, mode="r+")


def _go_on(path: Path, facts: dict[str, Any]) -> Group:
    """Open an existing store to complete it, and note what is different this time."""
    found = facts_of(open_sound(path))
    if found["settings_sha256"] != facts["settings_sha256"]:
        raise TiaftError(
            f"{path} was made with other settings ({differences(found, facts)}): choose "
            "another folder, or pass --overwrite"
        )
    if found["patient"] is not None and facts["patient"] not in (None, found["patient"]):
        raise TiaftError(
            f"{path} is of patient {found['patient']}, not {facts['patient']}: correct the table, "
            "or pass --overwrite"
        )
    group: Group = zarr.open_group(path, mode="r+")
    if _hash_of_tiles(group["coordinates"][:], group["tissue"][:]) != found["tiles_sha256"]:
        raise _misplaced(path)
    if found["tiles_sha256"] != facts["tiles_sha256"]:
        raise TiaftError(
            f"{path} has other tiles than grid and mask give now: TIAToolbox, or another library, "
            "may be a newer one; choose another folder, or pass --overwrite"
        )
    noted = {**found, "patient": facts["patient"] or found["patient"]}
    now = {name: facts[name] for name in _CIRCUMSTANCES if name in facts}
    last = {**found, **(found["resumed"] or [{}])[-1]}
    if count_missing(group) and any(last.get(name) != value for name, value in now.items()):
        noted["resumed"] = [*found["resumed"], now]
    if noted != found:
        group.attrs["tiaft"] = noted
    return group


def begun(path: Path | None) -> dict[str, Any] | None:
    """Return the attributes of a sound store that is there, complete or not; None otherwise."""
    if path is None or not path.exists():
        return None
    try:
        return facts_of(open_sound(path))
    except TiaftError:
        return None


def write_chunk(
    group: Group, number: int, values: np.ndarray, beside: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write chunk `number` with what stands beside its values, and only then mark it as written.

    `beside` holds at least the arrays that the store has. Raises TiaftError for NaN and infinity.
    """
    facts = facts_of(group)
    rows = chunk_slice(number, facts["chunk_rows"])
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise TiaftError("the model gives NaN or infinity on this slide: nothing is written of it")
    group[ARRAYS[facts["kind"]]][rows] = values
    if facts["kind"] == "predictions":
        group["predictions"][rows] = labels_of(values, multilabel=is_multilabel(facts))
    arrays = [values]
    for name in beside_of(facts):
        arrays.append(np.ascontiguousarray((beside or {})[name], dtype=BESIDE[name][1]))
        group[name][rows] = arrays[-1]
    group["chunk_crc32"][number] = _crc32(arrays)


def is_written(group: Group, number: int) -> bool:
    """Whether chunk `number` is marked as written and still is what was written."""
    return read_chunk(group, number) is not None


def read_chunk(group: Group, number: int) -> np.ndarray | None:
    """Return the values (n, D) of chunk `number`; None where it is not what was written."""
    facts = facts_of(group)
    rows = chunk_slice(number, facts["chunk_rows"])
    try:
        crc = int(group["chunk_crc32"][number])
        arrays = [group[name][rows] for name in (ARRAYS[facts["kind"]], *beside_of(facts))]
    except Exception:  # a file of the chunk is damaged: codecs raise what they like
        return None
    return arrays[0] if crc != _NOT_WRITTEN and _crc32(arrays) == crc else None


def facts_of(group: Group) -> dict[str, Any]:
    """Return a store's attributes."""
    return dict(group.attrs)["tiaft"]


def timing_of(group: Group) -> Any:
    """Return what a store keeps of where the time went, or None."""
    return dict(group.attrs).get(TIMING)


def note_timing(group: Group, timing: dict[str, Any]) -> None:
    """Note in a complete store where the time of its last run went (``Timing.facts``)."""
    group.attrs[TIMING] = timing


def beside_of(facts: dict[str, Any]) -> list[str]:
    """Return the names of the arrays that stand beside the values of a store of these `facts`."""
    return facts.get("beside", [])  # none in version 1


def is_multilabel(facts: dict[str, Any]) -> bool:
    """Tell whether tiles have any number of labels; a store says so only where they have."""
    return facts.get("task") == "multilabel"


def count_missing(group: Group) -> int:
    """Return how many chunks are not written yet."""
    return int((np.asarray(group["chunk_crc32"][:]) == _NOT_WRITTEN).sum())


def chunk_slice(number: int, chunk_rows: int) -> slice:
    """Return the rows of chunk `number`."""
    return slice(number * chunk_rows, (number + 1) * chunk_rows)


def describe(settings: dict[str, Any], **circumstances: Any) -> dict[str, Any]:
    """Return a store's attributes: `settings` decide what is in it, `circumstances` do not.

    `settings` holds kind, slide, model, classes, grid, scale_to_baseline, precision and
    stain_normalisation, and task where a tile has several labels; only they are fingerprinted.
    `circumstances` holds patient, seed, batch_size, threads, device and versions.
    """
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "chunk_rows": CHUNK_ROWS,
        **settings,
        "grid_id": _sha256_of_json({key: settings["grid"][key] for key in _GRID})[:16],
        "settings_sha256": _sha256_of_json(without_names(settings)),
        "resumed": [],
        "sinks": [],
        **circumstances,
    }


def note_sink(path: Path, name: str) -> None:
    """Note in a store that the file of a sink was written from it."""
    group: Group = zarr.open_group(path, mode="r+")
    facts = facts_of(group)
    group.attrs["tiaft"] = {**facts, "sinks": sorted({*facts["sinks"], name})}


def _crc32(arrays: Sequence[np.ndarray]) -> int:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return crc


def _damaged(path: Path, number: int) -> TiaftError:
    return TiaftError(
        f"{path} is damaged: chunk {number} is not what was written; run the same command again, "
        "it writes that chunk anew"
    )


def _misplaced(path: Path) -> TiaftError:
    return TiaftError(f"{path} is damaged (coordinates): --overwrite makes it anew")


def _hash_of_tiles(coordinates: np.ndarray, tissue: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(coordinates, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(tissue, dtype="<f4").tobytes())
    return digest.hexdigest()


def _create(
    path: Path, facts: dict, coordinates: np.ndarray, tissue: np.ndarray, width: int
) -> None:
    group = zarr.open_group(path, mode="w")
    count = len(coordinates)
    group.create_array(
        ARRAYS[facts["kind"]],
        shape=(count, width),
        chunks=(CHUNK_ROWS, width),
        dtype="float32",
        compressors=None,  # float features hardly compress
    )
    if facts["kind"] == "predictions":  # TIAToolbox's converters read it
        group.create_array("predictions", shape=(count,), chunks=(CHUNK_ROWS,), dtype="int64")
    for name in beside_of(facts):
        shape, dtype = BESIDE[name]
        group.create_array(name, shape=(count, *shape), chunks=(CHUNK_ROWS, *shape), dtype=dtype)
    for name, values in (
        ("coordinates", np.asarray(coordinates, dtype=np.int64)),
        ("tissue", np.asarray(tissue, dtype=np.float32)),
    ):
        group.create_array(name, data=values)
    marks = np.full(-(-count // CHUNK_ROWS), _NOT_WRITTEN, dtype=np.int64)
    group.create_array("chunk_crc32", data=marks, chunks=(min(len(marks), MARKS),))
    group.attrs["tiaft"] = facts


def open_any(path: Path) -> Group:
    """Open a store for reading, complete, sound or not. Raises TiaftError for what is no store."""
    try:
        group = zarr.open_group(path, mode="r")
        facts = facts_of(group)
        schema, version = facts["schema"], facts["version"]
        lacking = [name for name in _NEEDED if name not in facts]
    except Exception as error:  # zarr raises its own, KeyError, ValueError and OSError
        raise TiaftError(
            f"{path} is no store of tiaft's: it is left alone, choose another folder or name"
        ) from error
    if schema != SCHEMA or not isinstance(version, int):
        raise TiaftError(f"{path} is no store of tiaft's (schema {schema!r}): it is left alone")
    if version > VERSION:
        raise TiaftError(
            f"{path} has version {version} of the store, this tiaft_plugin reads up to {VERSION}: "
            "upgrade tiaft_plugin"
        )
    if lacking:
        raise TiaftError(f"{path} is damaged ({', '.join(lacking)} missing): remove it")
    return group


def open_sound(path: Path) -> Group:
    """Open a store for reading that has all its arrays, complete or not. Raises TiaftError."""
    group = open_any(path)
    facts = facts_of(group)
    values = ARRAYS.get(str(facts.get("kind")), "?")
    arrays = ["coordinates", "tissue", "chunk_crc32", values, *beside_of(facts)]
    lacking = []
    for name in arrays:
        try:
            group[name]
        except Exception:  # as in read_chunk
            lacking.append(name)
    try:
        if not lacking:
            count_missing(group)
    except Exception:  # as in read_chunk
        lacking = ["the list of what is written"]
    if lacking:
        raise TiaftError(
            f"{path} is damaged ({', '.join(lacking)} missing): --overwrite makes it anew"
        )
    return group


def _sha256_of_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
