"""From tile folders to a model file, and to a name: what ``tiaft finetune`` does."""

from collections.abc import Sequence
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, refuse_unsuitable
from tiaft_plugin.tiles.split import split_by_groups
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

STAGE1 = "-stage1"


def read_tiles(
    path: Path, val: Path | None = None, val_groups: Sequence[str] = (), mpp: float | None = None
) -> tuple[TileSet, TileSet | None]:
    """Return the tiles to train on, and those held out: those of `val`, or groups of `path`.

    `mpp` (µm/px) holds for both sets. Raises TiaftError.
    """
    tiles = read_tileset(path, mpp=mpp)
    if val is not None and val_groups:
        raise TiaftError("hold out either another tile set or groups of this one, not both")
    if val_groups:
        return split_by_groups(tiles, val_groups)
    return tiles, None if val is None else read_tileset(val, mpp=mpp, classes=tiles.classes)


def finetune(
    job: FinetuneJob, finetuner: str = "two-stage", register: str | None = None
) -> FinetuneResult:
    """Run a job with a finetuner by name; add the model to the zoo as `register`, where given.

    The model of stage 1, where there is one, is added as ``<register>-stage1``; an alias such as
    ``ftx2048`` stands for its name. Raises TiaftError, before training where a name is not to be
    had.
    """
    from tiaft_plugin.plugins import collect

    known = collect("register_finetuners")
    if finetuner not in known:
        raise TiaftError(f"there is no finetuner {finetuner}: there is {', '.join(sorted(known))}")
    refuse_unsuitable(finetuner, known[finetuner].thing, job)
    if register:
        from tiaft_plugin.zoo.folder import check_name

        register = check_name(register)
        _refuse_taken(register, job.overwrite)
        _refuse_unfit(register, job)
    result = known[finetuner].thing(job)
    if register:
        _register(register, result, job.overwrite)
    return result


def finetune_tiles(
    path: Path, *, val: Path | None = None, val_groups: Sequence[str] = (), **job
) -> FinetuneResult:
    """Read tiles and run a job on them: `job` are the fields of FinetuneJob. Raises TiaftError."""
    how = {name: job.pop(name) for name in ("finetuner", "register") if name in job}
    train, held_out = read_tiles(path, val, val_groups, job.get("mpp"))
    return finetune(FinetuneJob(train=train, val=held_out, **job), **how)


def _refuse_taken(name: str, overwrite: bool) -> None:
    from tiaft_plugin.zoo.folder import check_name, file_of

    for wanted in (name, name + STAGE1):
        path = file_of(check_name(wanted))
        if path.exists() and not overwrite:
            raise TiaftError(
                f"there is a model {wanted} already ({path}): choose another name for --register, "
                "or pass --overwrite"
            )


def _refuse_unfit(name: str, job: FinetuneJob) -> None:
    """Raise TiaftError if the model cannot have a name, or not this one."""
    from tiaft_plugin.finetune.origin import backbone_of
    from tiaft_plugin.network.card import Card
    from tiaft_plugin.zoo.promises import PROMISES

    promise = PROMISES.get(name)
    mpp = job.mpp or job.train.mpp
    if mpp is None:
        raise TiaftError(
            f"{job.train.root}: the tiles' µm/px is not known, and slides are to be read at it: "
            "pass --mpp, or give manifest.csv a column mpp"
        )
    if promise is None or not isinstance(job.train, TileSet):
        return
    size = job.tile_size or job.train.tile_size
    mpp = mpp * job.train.tile_size / size
    promise.check(Card(backbone_of(job), size, mpp, job.train.classes, job.hidden))


def _register(name: str, result: FinetuneResult, overwrite: bool) -> None:
    from tiaft_plugin.zoo.folder import add_model

    add_model(name, result.model, overwrite=overwrite)
    if result.stage1 is not None:
        add_model(name + STAGE1, result.stage1, overwrite=overwrite)
