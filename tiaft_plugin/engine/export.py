"""Stores in the files that other tools of the field read: CLAM, TRIDENT, STAMP, scverse.

Every layout is written row block by row block, so that memory does not grow with the slide.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from tiaft_plugin.engine.store import Store, read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, write_atomically

# TRIDENT's name for the magnification of a slide, by its µm/px: the first that is larger.
_MAGNIFICATIONS = ((0.16, 80), (0.2, 60), (0.3, 40), (0.6, 20), (1.2, 10), (2.4, 5))
_NOT_TOLD = ("resumed", "sinks")  # circumstances that grow, and say nothing of the content


def stores_in(paths: Sequence[Path]) -> list[Path]:
    """Return the stores that a person named: each by itself, and all (``*.zarr``) of a folder.

    Raises TiaftError for a folder without any.
    """
    found: dict[Path, None] = {}
    for path in paths:
        stores = [path]
        if path.is_dir() and path.suffix.lower() != ".zarr" and not (path / "zarr.json").exists():
            stores = sorted(p for p in path.glob("*.zarr") if not p.name.startswith("."))
        if not stores:
            raise TiaftError(f"{path} holds no store (.zarr): `tiaft extract` writes them")
        found.update(dict.fromkeys(stores))
    return list(found)


def export_paths(stores: Sequence[Path], to: str, out: Path) -> list[Path]:
    """Return the file ``out/<store's stem><suffix>`` of each store.

    Raises TiaftError where two stores would write the same file.
    """
    by_file: dict[Path, Path] = {}
    for store in stores:
        file = out / f"{store.stem}{LAYOUTS[to][0]}"
        other = by_file.setdefault(file, store)
        if other != store:
            raise TiaftError(f"{other} and {store} would both become {file}: export them apart")
    return list(by_file)


def export_store(store: Path, to: str, out: Path, *, overwrite: bool = False) -> int:
    """Write a complete store, its chunks compared with their CRC-32, to the file `out`.

    `to` is ``h5`` (CLAM, TRIDENT), ``stamp``, ``pt`` (CLAM) or ``anndata``; docs/formats.md has
    what is in them. Returns the number of tiles. Raises TiaftError, and writes nothing.
    """
    suffix, write = LAYOUTS[to]
    if out.suffix != suffix:
        raise TiaftError(f"{out}: a file for --to {to} ends in {suffix}")
    if not overwrite:
        refuse_existing(out)
    opened = read_store(store, verify=True)
    if opened.kind != "features" and to != "anndata":
        raise TiaftError(f"{store} holds {opened.kind}: --to {to} is for features, anndata for all")
    with write_atomically(out, overwrite=overwrite) as temporary:
        write(opened, temporary)
    return len(opened)


def write_h5(store: Store, path: Path) -> None:
    """Write ``features`` (N, D) float32 and ``coords`` (N, 2) int64, top left in baseline pixels.

    The attributes of ``coords`` are TRIDENT's. CLAM's ``patch_level`` is there only where tiles
    were read at baseline: of a level, it would read ``patch_size`` pixels.
    """
    side, overlap = _square(store)
    mpp, scale = _mpp(store), float(store.scale.mean())
    with h5py.File(path, "w") as file:
        features, coords = _datasets(file, "features", store, "int64")
        for rows, bounds, values in rows_of(store):
            features[rows], coords[rows] = values, np.rint(bounds[:, :2])
        name = store.path.stem
        features.attrs.update(name=name, encoder=store.facts["model"]["name"])
        width, height = store.facts["slide"]["size"]
        coords.attrs.update(
            name=name,
            patch_size=side,
            patch_size_level0=round(side * scale),
            overlap=overlap,
            level0_magnification=_magnification(mpp),
            target_magnification=_whole(10 / (mpp * scale)),
            level0_width=width,
            level0_height=height,
        )
        if scale == 1:
            coords.attrs["patch_level"] = 0
        file.attrs["tiaft"] = told(store)


def write_stamp(store: Store, path: Path) -> None:
    """Write STAMP's ``feats`` (N, D) float32 and ``coords`` (N, 2) float32, top left in µm."""
    side, _ = _square(store)
    mpp = np.asarray(store.facts["slide"]["mpp"], dtype=np.float64)
    with h5py.File(path, "w") as file:
        features, coords = _datasets(file, "feats", store, "float32")
        for rows, bounds, values in rows_of(store):
            features[rows], coords[rows] = values, bounds[:, :2] * mpp
        file.attrs.update(
            extractor=store.facts["model"]["name"],
            unit="um",
            tile_size_um=side * float((store.scale * mpp).mean()),
            tile_size_px=side,
            feat_type="tile",
            tiaft=told(store),
        )


def write_pt(store: Store, path: Path) -> None:
    """Write the features alone, a tensor (N, D) float32, as CLAM's ``pt_files`` have them."""
    import torch

    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        for _, _, values in rows_of(store):
            scratch.write(np.asarray(values, dtype=np.float32).tobytes())
        scratch.flush()
        # torch.save wants one tensor: this one's memory is the scratch file.
        mapped = np.memmap(scratch, dtype=np.float32, mode="c", shape=store.values.shape)
        with path.open("wb") as file:  # of a path, torch would write its name into the file
            torch.save(torch.from_numpy(mapped), file)
        del mapped


def write_anndata(store: Store, path: Path) -> None:
    """Write an AnnData file, see `tiaft_plugin.engine.export_anndata`."""
    from tiaft_plugin.engine import export_anndata

    export_anndata.write_anndata(store, path)


def rows_of(store: Store) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Give (rows, bounds (n, 4) float64 in baseline pixels, values (n, D)) block by block."""
    start = 0
    for bounds, values in store.blocks():
        yield slice(start, start + len(values)), bounds, values
        start += len(values)


def told(store: Store) -> str:
    """Return as JSON what the store says of how it was made."""
    facts = {key: value for key, value in store.facts.items() if key not in _NOT_TOLD}
    return json.dumps(facts, ensure_ascii=False)


def _datasets(file: h5py.File, name: str, store: Store, coords: str) -> tuple:
    shape = store.values.shape
    chunk = min(shape[0], store.facts["chunk_rows"])
    return (
        file.create_dataset(name, shape, "float32", chunks=(chunk, shape[1])),
        file.create_dataset("coords", (shape[0], 2), coords, chunks=(chunk, 2)),
    )


def _square(store: Store) -> tuple[int, int]:
    """Return the tiles' side and overlap, px at the read resolution; these layouts have one."""
    (height, width), stride = store.facts["grid"]["tile_size"], store.facts["grid"]["stride"]
    if height != width:
        raise TiaftError(
            f"{store.path} has tiles of {width}×{height} px: this layout knows square ones only"
        )
    return width, max(0, width - min(stride))


def _mpp(store: Store) -> float:
    return float(np.mean(store.facts["slide"]["mpp"]))


def _magnification(mpp: float) -> float:
    nominal = (name for limit, name in _MAGNIFICATIONS if mpp < limit)
    return next(nominal, _whole(10 / mpp))


def _whole(number: float) -> float:
    return round(number) if abs(number - round(number)) < 1e-6 else number


LAYOUTS: dict[str, tuple[str, Callable[[Store, Path], None]]] = {
    "h5": (".h5", write_h5),
    "stamp": (".h5", write_stamp),
    "pt": (".pt", write_pt),
    "anndata": (".h5ad", write_anndata),
}
