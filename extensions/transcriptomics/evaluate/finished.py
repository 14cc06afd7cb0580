"""A finished fine-tuning on expression, read back: its model, its heads, and who it learnt from."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tiaft_extensions.transcriptomics.expression.scaling import GeneScale
from tiaft_extensions.transcriptomics.expression.tables import Expression
from tiaft_extensions.transcriptomics.tune.loop import Tuned
from tiaft_extensions.transcriptomics.tune.losses import Contrastive, Direct
from tiaft_extensions.transcriptomics.tune.outputs import HEADS, MODEL
from tiaft_extensions.transcriptomics.tune.samples import SETS, SLIDES
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_extensions.transcriptomics.tune.towers import ImageTower
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.words import some

LEARNT = ("train", "val")  # an epoch is chosen by val: it has been seen, too


@dataclass(frozen=True)
class Finished:
    """A run's folder. `tuned` embeds features of `model`; `patients` are all that it knows.

    `learnt` are names of those that it has seen, and of their slides.
    `about` is what ``heads.safetensors`` tells: objective, settings, genes, their mean and sd.
    """

    folder: Path
    model: Path
    tuned: Tuned
    about: dict[str, Any]
    patients: frozenset[str]
    learnt: frozenset[str]

    @torch.no_grad()
    def embed(self, features: np.ndarray) -> np.ndarray:
        """Return a slide's embedding (P,) float64 of its tiles' features (n, D) by `model`."""
        there = torch.ones(1, len(features), dtype=torch.bool)
        return self.tuned.tower.pool(torch.from_numpy(features), there)[0].double().numpy()

    @torch.no_grad()
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the objective's (n, ·) float64: genes of slides, or embeddings of expression."""
        return self.tuned.objective.predict(torch.from_numpy(rows).float()).double().numpy()

    def scale(self, expression: Expression) -> GeneScale:
        """Return how the run standardised genes, for a table's columns.

        Raises TiaftError where the table lacks genes that were learnt from.
        """
        names = self.about["genes"]
        place = {gene: number for number, gene in enumerate(expression.genes)}
        lacking = [gene for gene in names if gene not in place]
        if lacking:
            raise TiaftError(
                f"the expression table lacks {len(lacking)} of the {len(names)} genes that "
                f"{self.folder} learnt from: {some(lacking)}"
            )
        columns = np.array([place[gene] for gene in names])
        mean, sd = np.array(self.about["mean"]), np.array(self.about["sd"])
        return GeneScale(tuple(names), columns, mean, sd)


def read_finished(folder: Path) -> Finished:
    """Read what ``tiaft transcriptomics tune`` left. Raises TiaftError for what is not that."""
    lacking = [name for name in (MODEL, HEADS, SLIDES) if not (folder / name).is_file()]
    if lacking:
        raise TiaftError(
            f"{folder} is no finished run of `tiaft transcriptomics tune`: {some(lacking)} missing"
        )
    weights, about = _read_heads(folder / HEADS)
    settings = TuneSettings(**about["settings"])
    tower = ImageTower(weights["tower.projection.0.weight"].shape[1], settings)
    tuned = Tuned(tower, _objective(about, settings, weights))
    tuned.load_state_dict(weights)
    if settings.train == "head":  # the model file's features are projected already
        tower.projection = nn.Identity()
    patients = frozenset(row["patient"] for row in _read_slides(folder / SLIDES))
    return Finished(folder, folder / MODEL, tuned.eval(), about, patients, read_learnt(folder))


def read_learnt(folder: Path) -> frozenset[str]:
    """Return the names of patients that a run has seen, and of their slides.

    Where nobody names patients, slides stand for them. Raises TiaftError where the run does not
    tell.
    """
    if not (folder / SLIDES).is_file():
        raise TiaftError(f"{folder} has no {SLIDES}: `tiaft transcriptomics tune` writes it")
    seen = [row for row in _read_slides(folder / SLIDES) if row["set"] in LEARNT]
    return frozenset(row[name] for row in seen for name in ("patient", "slide"))


def _read_heads(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["tiaft_expression"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except Exception as error:  # safetensors, json and a missing key, each their own
        raise TiaftError(f"{path} holds no heads of a fine-tuning on expression") from error


def _objective(
    about: dict[str, Any], settings: TuneSettings, weights: dict[str, torch.Tensor]
) -> Direct | Contrastive:
    genes = len(about["genes"])
    if about["objective"] == "direct":
        return Direct(settings.width, genes, settings.head)
    hidden = weights["objective.encoder.0.weight"].shape[0]
    return Contrastive(settings.width, genes, hidden, settings.temperature, settings.dropout)


def _read_slides(path: Path) -> list[dict[str, str]]:
    """Return slide, patient and set of each slide."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows = [{name: row[name] for name in ("slide", "patient", "set")} for row in table]
        if not rows or any(row["set"] not in SETS for row in rows):  # cut short: who has learnt?
            raise ValueError("no sets")
        return rows
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise TiaftError(
            f"{path}: columns slide, patient and set expected, and in that {', '.join(SETS)}: "
            "it is not as `tiaft transcriptomics tune` wrote it"
        ) from error
