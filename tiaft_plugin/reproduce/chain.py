"""The links that a chain is made of, whole or in miniature: models, features, probes."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiaft_plugin.files import sha256_of
from tiaft_plugin.probes.interface import FeatureTable, Result, Targets
from tiaft_plugin.reproduce.steps import Steps

if TYPE_CHECKING:
    from tiaft_plugin.tiles.tileset import TileSet

Models = Mapping[str, Path]  # by feature set, the reference first


@dataclass(frozen=True)
class Runner:
    """What all links share: the folder, the steps, and the processes of probes."""

    out: Path
    say: Callable[[str], None]
    workers: int | None = None

    @property
    def steps(self) -> Steps:
        """The steps in the folder."""
        return Steps(self.out, self.say)

    @property
    def processes(self) -> int:
        """How many processes probes run in."""
        return self.workers or os.cpu_count() or 1


def make_models(
    runner: Runner,
    tiles: Path,
    job: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    val: Path | None = None,
    val_groups: Sequence[str] = (),
) -> dict[str, Path]:
    """Fine-tune, and make the baselines' model files; return them by feature set, FTX last.

    `job` holds fields of FinetuneJob. `names` gives the feature sets' names: ``pooled`` is Part A's
    output with its first weights, ``stage1`` the features of stage 1, in which Part B alone was
    trained: the paper's IMGNET-2048 can be read either way (section 3.2). ``ftx`` is always made.
    """
    finetuned = runner.out / "finetune"
    files = {
        "pooled": runner.out / "models" / "imgnet.safetensors",
        "stage1": finetuned / "stage1.safetensors",
        "ftx": finetuned / "model.safetensors",
    }
    init = str(job["init"])
    origin = sha256_of(Path(init)) if Path(init).is_file() else init
    settings = {**job, "init": origin, "tiles": _listing(tiles), "val_groups": list(val_groups)}
    for circumstance in ("device", "workers"):
        settings.pop(circumstance, None)

    def finetune() -> None:
        from tiaft_plugin.finetune.run import finetune_tiles

        result = finetune_tiles(
            tiles,
            val=val,
            val_groups=tuple(val_groups),
            val_share=0,  # as in the paper: all tiles train
            out=finetuned,
            overwrite=True,
            **job,
        )
        runner.say(result.summary)

    runner.steps.run("finetune", settings, [files["ftx"], files["stage1"]], finetune)
    if "pooled" in names:
        about = {key: settings[key] for key in ("backbone", "init")}
        path = files["pooled"]
        runner.steps.run("imgnet", about, [path], lambda: _make_imgnet(files["ftx"], job, path))
    return {name: files[which] for which, name in names.items()}


def _listing(tiles: Path) -> str:
    """Return a hash of a folder's names and sizes: to read 100,000 tiles again would take long."""
    root = tiles if tiles.is_dir() else tiles.parent
    files = sorted(path for path in root.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def extract_tile_sets(
    runner: Runner, name: str, tiles: "TileSet", models: Models, **how: Any
) -> dict[str, Path]:
    """Extract the features of a tile set with each model; return the files by feature set."""
    from tiaft_plugin.tiles.fingerprint import fingerprint

    made, of = {}, fingerprint(tiles)
    for features, model in models.items():
        path = runner.out / "features" / name / f"{features}.npz"
        settings = {"tiles": of, "model": sha256_of(model)}

        def extract(features: str = features, model: Path = model, path: Path = path) -> None:
            from tiaft_plugin.engine.tile_features import extract_tiles
            from tiaft_plugin.probes.features import feature_table, write_features

            found = extract_tiles(tiles, str(model), **how)
            table = feature_table(
                path,
                features,
                found.keys,
                found.features,
                groups=found.groups if (found.groups != "").any() else None,
                labels=found.labels,
                colour=found.colour,
                source={"models": found.about["models"], "about": found.about},
            )
            for warning in found.warnings:
                runner.say(f"warning: {warning}")
            write_features(path, table, overwrite=True)

        runner.steps.run(f"features-{name}-{features}", settings, [path], extract)
        made[features] = path
    return made


def probe(
    runner: Runner,
    name: str,
    inputs: Mapping[str, Any],
    read: Callable[[], tuple[list[FeatureTable], Targets]],
    **settings: Any,
) -> Result:
    """Run a probe into ``out/<name>`` unless it was run of the same inputs; return its result.

    `inputs` identify what `read` reads.
    """
    from tiaft_plugin.probes.outputs import read_result
    from tiaft_plugin.probes.run import run_probe

    folder = runner.out / name

    def run() -> None:
        tables, targets = read()
        run_probe(
            name, tables, targets, folder, workers=runner.processes, overwrite=True, **settings
        )

    about = {**inputs, **settings}
    runner.steps.run(f"probe-{name}", about, [folder / "summary.json"], run)
    result = read_result(folder)
    for warning in result.summary["warnings"]:
        runner.say(f"warning: {warning}")
    runner.say(result.summary["answer"])
    return result


def hashes(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: sha256_of(path) for name, path in paths.items()}


def _make_imgnet(finetuned: Path, job: Mapping[str, Any], path: Path) -> None:
    """Make the model without Part B that the fine-tuning began with."""
    from tiaft_plugin.network.card import read_card
    from tiaft_plugin.network.create import create_network
    from tiaft_plugin.network.file import save_model

    card = read_card(finetuned)
    net = create_network(
        card.backbone,
        init=str(job["init"]),
        tile_size=card.tile_size,
        mpp=card.mpp,
        backbone_args=card.backbone_args,
        mean=card.mean,
        std=card.std,
    )
    net.card = replace(net.card, licence=card.licence)
    save_model(net, path, overwrite=True)
