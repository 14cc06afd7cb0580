"""Feature stores of each encoder: made where they are missing; and what they say of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiaft_extensions.histotransfer.compare.encoders import Encoder
from tiaft_extensions.histotransfer.tile_stores import (
    is_tile_folder,
    tiles_in,
    write_tile_stores,
)
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.slides import fingerprint
from tiaft_plugin.engine.store import Store, read_store
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.probes.stores import open_stores
from tiaft_plugin.tiles.images import check_images
from tiaft_plugin.tiles.known import recognise
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some


@dataclass(frozen=True)
class Stored:
    """What the stores of a feature set say: of their model, their tiles, and how fast they came.

    `tile_size` in px, `mpp` the µm/px tiles were read at (0 where units are others);
    `tiles_per_second` is that of all slides together, reading included, None where no store has
    it; `device` where it was computed.
    """

    model: str
    sha256: str
    width: int
    tile_size: int
    mpp: float
    slides: int
    tiles: int
    tiles_per_second: float | None = None
    device: str = ""


def extract(
    encoder: Encoder,
    jobs: Sequence[SlideJob],
    out: Path,
    *,
    overwrite: bool = False,
    say: Callable[[str], Any] = print,
    **engine: Any,
) -> None:
    """Make the feature stores of slides in `out`, those that are not there yet.

    Slides may all be folders of tiles. `engine` is `make_engine`'s. Raises Stopped where slides
    fail, after all of them.
    """
    from tiaft_plugin.engine.run import make_engine, run_slides

    folders = [job.slide for job in jobs if is_tile_folder(job.slide)]
    if folders and len(folders) < len(jobs):
        raise TiaftError(f"{folders[0]} is a folder of tiles: compare these, or slides, not both")
    if folders:
        _extract_folders(encoder, jobs, out, engine)
        _refuse_others(out, {f"{folder.name}.zarr" for folder in folders})
        return
    made = make_engine("features", encoder.model, **engine)
    failed, stores = {}, set()
    for result in run_slides(made, jobs, out, overwrite=overwrite):
        if result.status == "failed":
            failed[result.slide.name] = result.reason
        elif result.store is not None:
            stores.add(result.store.name)
            if result.status == "done":
                say(f"  {result.slide.name}: {result.tiles} tiles; {result.speed}")
    if failed:
        listed = some([f"{slide} ({why})" for slide, why in failed.items()], 3)
        raise Stopped(
            f"{encoder.name}: {len(failed)} of {len(jobs)} slides failed: {listed}: put them right "
            "or leave them out, and run the same command again"
        )
    _refuse_others(out, stores)


def _refuse_others(out: Path, stores: Collection[str]) -> None:
    others = sorted(path.name for path in out.glob("*.zarr") if path.name not in stores)
    if others:
        raise TiaftError(
            f"{out} has stores of other slides, too: {some(others)}: name these slides, or remove "
            "the stores"
        )


def _extract_folders(
    encoder: Encoder, jobs: Sequence[SlideJob], out: Path, engine: Mapping[str, Any]
) -> None:
    """Make the feature stores of folders of tiles, those that are missing or not complete.

    Raises TiaftError where one is of another model, µm/px or tiles.
    """
    from tiaft_plugin.engine.run import make_engine

    roots = {job.slide.resolve().parent for job in jobs}
    if len(roots) > 1:
        listed = some(sorted(str(root) for root in roots))
        raise TiaftError(f"folders of tiles are in several folders ({listed}): put them into one")
    root = roots.pop()
    how = {name: engine[name] for name in ("batch_size", "device") if name in engine}
    found = {job.slide: _whole(out / f"{job.slide.name}.zarr") for job in jobs}
    sha256 = make_engine("features", encoder.model, **how).model_facts["sha256"]
    for job in jobs:
        if (store := found[job.slide]) is not None and not _is_of(store, job, sha256):
            raise TiaftError(
                f"{store.path} is of another model or µm/px, or of other tiles than {job.slide} "
                "holds now: choose another --out, or pass --overwrite to begin anew"
            )
    missing = sorted(slide.name for slide, store in found.items() if store is None)
    if missing:
        tiles = _tiles_of(root, missing, jobs[0].mpp)
        write_tile_stores(tiles, encoder.model, out, overwrite=True, **how)


def _tiles_of(root: Path, folders: Sequence[str], mpp: float | None) -> TileSet:
    """Return the tiles of some folders in `root`; what else is there is none of theirs."""
    files = [file for folder in folders for file in tiles_in(root / folder)]
    tile_size = check_images(files, root)
    known = recognise(files, tile_size)
    return TileSet(
        root=root,
        files=tuple(files),
        labels=tuple(file.parent.name for file in files),
        groups=(None,) * len(files),
        classes=tuple(folders),
        tile_size=tile_size,
        mpp=mpp or (known.mpp if known else None),
        known=known,
    )


def _whole(path: Path) -> Store | None:
    """Return a store that is there and complete."""
    if not path.exists():
        return None
    try:
        return read_store(path)
    except TiaftError:
        return None


def _is_of(store: Store, job: SlideJob, sha256: str) -> bool:
    """Whether a store has the features that a model gives of a folder of tiles as it is now."""
    facts = store.facts
    same_mpp = job.mpp is None or facts["grid"]["resolution"] == job.mpp
    same_tiles = facts["slide"]["fingerprint"] == fingerprint(job.slide)
    return facts["model"]["sha256"] == sha256 and same_mpp and same_tiles


def stored(path: Path, name: str) -> Stored:
    """Return what the feature stores at `path` say. Raises TiaftError where they do not agree."""
    stores = open_stores(path, name)
    facts = stores[0].facts
    timed = [store.timing for store in stores if store.timing]
    seconds = sum(float(each["seconds"]) for each in timed)
    tiles = sum(int(each["tiles"]) for each in timed)
    grid = facts["grid"]
    devices = {str(store.facts.get("device") or "") for store in stores}
    return Stored(
        model=facts["model"]["name"],
        sha256=facts["model"]["sha256"],
        width=int(stores[0].values.shape[1]),
        tile_size=int(grid["tile_size"][0]),
        mpp=float(grid["resolution"]) if grid["units"] == "mpp" else 0.0,
        slides=len(stores),
        tiles=sum(map(len, stores)),
        tiles_per_second=tiles / seconds if seconds else None,
        device=" and ".join(sorted(devices - {""})),
    )
