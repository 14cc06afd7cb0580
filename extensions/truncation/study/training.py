"""One cell of the grid: a fine-tuning in a folder of its own, and what it measured."""

import json
import shutil
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiaft_extensions.truncation.backbones.cuts import WHOLE, find_cut
from tiaft_extensions.truncation.study.grid import Cell, Variant, share_of
from tiaft_extensions.truncation.study.measures import read_scores
from tiaft_extensions.truncation.study.settings import RECIPE, StudySettings
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.interface import FinetuneJob
from tiaft_plugin.finetune.outputs import MODEL, TILES
from tiaft_plugin.finetune.sets import Sets
from tiaft_plugin.finetune.unfinished import is_being_written

CELL = "cell.json"
TF = "tf-"  # how a backbone with a top of half the width is called: resnet50:tf-layer3
PART_A_LR = 0.1  # of the layers that train in LWFT, as in paper 3's code


def backbone_of(variant: Variant) -> str:
    """Return the name of a variant's backbone, as model files have it."""
    if variant.cut == WHOLE or variant.strategy == "lwft":
        return variant.backbone
    return f"{variant.backbone}:{TF if variant.strategy == 'tf' else ''}{variant.cut}"


class Trainer:
    """Trains cells of one study on `sets`, at tiles of `tile_size` px."""

    def __init__(self, settings: StudySettings, sets: Sets):
        self.settings, self.sets = settings, sets
        self.tile_size = settings.tile_size or sets.train.tile_size
        self._pretrained: dict[str, torch.Tensor] | None = None

    def folder(self, cell: Cell) -> Path:
        """Return where a cell's files lie."""
        return self.settings.out / "cells" / cell.name

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """Return what an earlier run found out about a cell, or None. Raises TiaftError."""
        path = self.folder(cell) / CELL
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TiaftError(f"{path} is damaged: remove it to train that cell again") from error

    def run(self, cell: Cell, *, keep_model: bool) -> dict[str, Any]:
        """Train a cell, or go on with it, unless it is done; return what was found out.

        Its model file stays where `keep_model` says so. Raises TiaftError.
        """
        found, folder = self.find(cell), self.folder(cell)
        if found is not None and keep_model and not (folder / MODEL).exists():
            shutil.rmtree(folder)  # it was of a smaller share than the largest, and is not now
            found = None
        if found is None:
            train = self._train(cell)
            doubts = self._finetune(cell, train)
            found = self._result(cell, folder, len(train), doubts)
            with write_atomically(folder / CELL) as temporary:
                temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
        if not keep_model:
            (folder / MODEL).unlink(missing_ok=True)
        return found

    def _train(self, cell: Cell):
        return share_of(self.sets.train, cell.percent, self.settings.seed, cell.repeat)

    def _finetune(self, cell: Cell, train) -> list[str]:
        """Fine-tune, unless only the end was missing; return its warnings."""
        from tiaft_plugin.finetune.run import finetune
        from tiaft_plugin.progress import hide_progress

        folder = self.folder(cell)
        if (folder / MODEL).exists() and not is_being_written(folder):
            return []  # written last: everything is there but what is made of it
        begun = self._beginning(cell)
        try:
            with hide_progress(), warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                finetune(self._job(cell, train, str(begun or self._init(cell))))
        finally:
            if begun is not None:
                begun.unlink(missing_ok=True)
        texts = (str(each.message) for each in said if each.category is UserWarning)
        return list(dict.fromkeys(texts))

    def _init(self, cell: Cell) -> str:
        return "random" if cell.variant.init == "random" else self.settings.weights

    def _job(self, cell: Cell, train, init: str) -> FinetuneJob:
        asked, variant = self.settings, cell.variant
        options: dict[str, Any] = {}
        if variant.strategy == "lwft":
            options = {"frozen": ",".join(self._bottom(variant)), "part_a_lr": PART_A_LR}
        return FinetuneJob(
            out=self.folder(cell),
            train=train,
            val=self.sets.val,
            test=self.sets.test,
            targets="multilabel" if train.multilabel else "classes",
            recipe=RECIPE,
            backbone=backbone_of(variant),
            backbone_args=asked.backbone_args if variant.backbone == asked.backbone else {},
            init=init,
            tile_size=asked.tile_size,
            mpp=asked.mpp,
            mean=asked.mean,
            std=asked.std,
            stain=asked.stain,
            epochs=None if asked.epochs is None else (asked.epochs,),
            lrs=None if asked.lr is None else (asked.lr,),
            batch_size=asked.batch_size,
            augment=asked.augment,
            # Random weights, as of the top of TF, need BatchNorm's statistics of their own.
            freeze_batchnorm=asked.freeze_batchnorm
            and variant.init == "pretrained"
            and variant.strategy != "tf",
            precision=asked.precision,
            seed=asked.seed + cell.repeat,
            device=asked.device,
            workers=asked.workers,
            options=options,
        )

    def _bottom(self, variant: Variant) -> list[str]:
        """Return the modules of the whole backbone up to a cut, those that hold weights."""
        top = self._plan(variant).left_out
        names = [name for name in self.whole() if not _inside(name, top)]
        return sorted({name.rpartition(".")[0] for name in names})

    def _beginning(self, cell: Cell) -> Path | None:
        """Write weights to begin with, where they are neither random nor those of a file."""
        variant, seed = cell.variant, self.settings.seed + cell.repeat
        if variant.strategy == "tf":
            top = self._plan(variant).left_out
            bottom = {k: v for k, v in self.whole().items() if not _inside(k, top)}
            weights = self._create(backbone_of(variant), "random", seed).state_dict() | bottom
        elif variant.init == "meanvar":
            from tiaft_extensions.truncation.backbones.meanvar import draw_like

            part_a = self._create(backbone_of(variant), self.settings.weights, seed)
            draw_like(part_a, seed)
            weights = part_a.state_dict()
        else:
            return None
        from safetensors.torch import save_file

        path = self.settings.out / "cells" / f".{cell.name}.safetensors"
        with write_atomically(path) as temporary:
            save_file({k: v.contiguous() for k, v in weights.items()}, temporary)
        return path

    def _plan(self, variant: Variant):
        return find_cut(variant.backbone, variant.cut, self.tile_size, self.settings.backbone_args)

    def whole(self) -> dict[str, torch.Tensor]:
        """Return the pretrained weights of the whole backbone; they are looked up once."""
        if self._pretrained is None:
            try:
                whole = self._create(self.settings.backbone, self.settings.weights, 0)
            except TiaftError as error:
                text = str(error).replace("--init", "--weights").replace(", random nor", " nor")
                text = text.replace("--weights random", "--init random")
                raise TiaftError(text) from error
            self._pretrained = whole.state_dict()
        return self._pretrained

    def _create(self, backbone: str, init: str, seed: int) -> nn.Module:
        from tiaft_plugin.network import create_network

        args = self.settings.backbone_args
        net = create_network(
            backbone, init=init, tile_size=self.tile_size, backbone_args=args, seed=seed
        )
        return net.part_a

    def _result(self, cell: Cell, folder: Path, tiles: int, doubts: list[str]) -> dict[str, Any]:
        from tiaft_plugin.network import read_card

        stage = read_card(folder / MODEL).training["stages"][0]
        held_out = {name: each for name, each in self.sets.named().items() if name != "train"}
        scores = read_scores(folder / TILES, held_out)
        return {
            **asdict(cell.variant),
            "percent": cell.percent,
            "repeat": cell.repeat,
            "train_tiles": tiles,
            "epochs": stage["epochs"],
            "kept_epoch": stage["kept_epoch"],
            "sets": {name: each.measured() for name, each in scores.items()},
            "warnings": doubts,
        }


def _inside(name: str, paths: tuple[str, ...]) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in paths)
