"""From tile folders to a model file, and to a name: what ``tiaft finetune`` does."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, refuse_unsuitable
from tiaft_plugin.finetune.recipes import RECIPES, recipe_of
from tiaft_plugin.finetune.sets import read_tiles
from tiaft_plugin.tiles.tileset import TileSet

STAGE1 = "-stage1"
_TRAINS = {"part_b": "Part B", "part_a": "Part A", "all": "the whole network"}


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
    path: Path,
    *,
    val: Path | None = None,
    val_groups: Sequence[str] = (),
    val_share: float | None = None,
    test: Path | None = None,
    test_groups: Sequence[str] = (),
    multilabel: bool = False,
    finetuner: str = "two-stage",
    register: str | None = None,
    say: Callable[[str], None] | None = None,
    **job,
) -> FinetuneResult:
    """Read tiles and run a job on them: `job` are the fields of FinetuneJob.

    What is held out, `read_tiles` tells: a fifth where nothing says so, by slide or patient where
    these are known. `say` gets what is about to be done, a line at a time. Raises TiaftError.
    """
    chosen = read_tiles(
        path,
        val=val,
        val_groups=val_groups,
        val_share=val_share,
        test=test,
        test_groups=test_groups,
        needs_val=_needs_val(job),
        mpp=job.get("mpp"),
        multilabel=multilabel,
        seed=job.get("seed", 0),
    )
    whole = FinetuneJob(
        train=chosen.train,
        val=chosen.val,
        test=chosen.test,
        targets="multilabel" if multilabel else "classes",
        notes=chosen.notes,
        **job,
    )
    for line in (*_plan(whole, finetuner), *chosen.lines):
        if say is not None and _is_first(whole):
            say(line)
    return finetune(whole, finetuner, register)


def _is_first(job: FinetuneJob) -> bool:
    if job.devices * job.nodes == 1:
        return True  # which is known without torch
    from tiaft_plugin.finetune.processes import is_first

    return is_first(job)


def _needs_val(job: Mapping[str, Any]) -> bool:
    """Return whether an epoch is chosen, or the learning rate lowered, by validation tiles."""
    recipe = RECIPES.get(job.get("recipe", FinetuneJob.recipe))
    keep = job.get("keep") or (recipe and recipe.keep)
    schedule = job.get("options", {}).get("schedule") or (recipe and recipe.schedule)
    return keep == "best" or schedule == "plateau"


def _plan(job: FinetuneJob, finetuner: str) -> list[str]:
    if finetuner != "two-stage":  # plug-ins' own read the numbers as they like
        return [f"finetuner {finetuner}"]
    recipe = recipe_of(job)
    stages = (
        f"stage {stage.number} trains {_TRAINS[stage.trains]} for {stage.epochs} "
        f"epoch{'s' * (stage.epochs != 1)}"
        for stage in recipe.stages
    )
    return [f"recipe {recipe.name}: {', '.join(stages)}"]


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
    recipe = recipe_of(job)
    card = Card(backbone_of(job, recipe), size, mpp, job.train.classes, recipe.hidden)
    promise.check(card)


def _register(name: str, result: FinetuneResult, overwrite: bool) -> None:
    from tiaft_plugin.zoo.folder import add_model

    add_model(name, result.model, overwrite=overwrite)
    if result.stage1 is not None:
        add_model(name + STAGE1, result.stage1, overwrite=overwrite)
