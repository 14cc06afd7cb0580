"""What `mil` keeps beside its scores: the heads of its folds, and their attention to each tile."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.histotransfer.attention import Head, load_head, save_head
from tiaft_extensions.histotransfer.bags import Bag, Bags
from tiaft_extensions.histotransfer.recipe import Recipe
from tiaft_extensions.histotransfer.training import train
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.probes.crossval import Problem, fold_seed
from tiaft_plugin.probes.interface import Experiment
from tiaft_plugin.tiles.words import some

FOLDER = "attention"  # beside the probe's results; a folder a feature set in it
RUN = "run.json"
CHOSE = "bags that chose the epoch"  # keys, in what a head's file says of its training
_SCHEMA, _VERSION = "tiaft-attention-run", 1


@dataclass(frozen=True)
class TileAttention:
    """Attention to the N tiles of a store, in its order.

    `logits` (K, N) float32 are the raw attention logits by the head of each fold, NaN where a fold
    has none; `attention` (N,) float32 is the softmax over the tiles of `bag`, by the head of
    `fold`, which never saw the bag. `tiles_sha256` is the store's own.
    """

    bag: str
    fold: int
    logits: np.ndarray
    attention: np.ndarray
    tiles_sha256: str

    @property
    def held_out(self) -> np.ndarray:
        """The raw logits (N,) by the head that never saw the bag."""
        return self.logits[self.fold]


@dataclass(frozen=True)
class AttentionRun:
    """The attention that a run of `mil` kept for one feature set.

    `keys`, `groups` and `labels` are (n,) text, a bag each; `folds` (n,) int64 the fold that tests
    it; `unit` what a bag is; `models` names the features' model.
    """

    folder: Path
    name: str
    unit: str
    classes: tuple[str, ...]
    keys: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    folds: np.ndarray
    stores: dict[str, str]  # file name: its bag
    models: tuple[dict[str, str], ...]

    def head(self, fold: int) -> Head:
        """Return the head of a fold, trained without the bags of that fold. Raises TiaftError."""
        return load_head(self.folder / head_name(fold))

    def heads(self) -> list[Head]:
        """Return the heads of all folds that have one. Raises TiaftError where none has."""
        there = [k for k in range(self.count) if (self.folder / head_name(k)).is_file()]
        if not there:
            raise TiaftError(f"{self.folder} has no heads: run `tiaft probe mil` again")
        return [self.head(fold) for fold in there]

    def tiles(self, store: Path | str) -> TileAttention:
        """Return the attention to the tiles of a store, known by its file name.

        Raises TiaftError where the run has no such store, or, if `store` is there, it has other
        tiles now, or another model's features.
        """
        store = Path(store)
        if store.name not in self.stores:
            known = some(list(self.stores), 3)
            raise TiaftError(f"{self.folder} knows no store {store.name}, but {known}")
        found = _read_tiles(self.folder / tiles_name(store))
        if not store.is_dir():
            return found
        facts = read_store(store).facts
        if facts["tiles_sha256"] != found.tiles_sha256:
            raise TiaftError(f"{store} has other tiles than `tiaft probe mil` saw: run that again")
        if facts["model"]["sha256"] not in [model["sha256"] for model in self.models]:
            raise TiaftError(
                f"{store} has features of another model than `tiaft probe mil` saw: run that again"
            )
        return found

    @cached_property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.folds.max()) + 1


def head_name(fold: int) -> str:
    """Return the name of the file of a fold's head."""
    return f"fold-{fold}.safetensors"


def tiles_name(store: Path) -> str:
    """Return the name of the file of the attention to a store's tiles."""
    return f"{store.stem}.npz"


def keep_attention(
    folder: Path, experiment: Experiment, problem: Problem, seed: int, recipe: Recipe
) -> None:
    """Write heads and attention of every feature set that is bags into `folder`/attention.

    The heads are those of the first repeat's folds, the same to the last bit. What an interrupted
    run wrote is not made again.
    """
    for name, bags in experiment.features.items():
        if isinstance(bags, Bags):
            place = folder / FOLDER / name
            bags = bags[problem.rows]
            heads = [
                _head(place, bags, problem, fold, seed, recipe) for fold in range(problem.count)
            ]
            for row, bag in enumerate(bags.bags):
                if not all((place / tiles_name(store)).is_file() for store in bag.stores):
                    _keep_tiles(place, bags, row, int(problem.folds[0, row]), heads)
            _keep_run(place, experiment, name, bags, problem)


def read_run(run: Path | str, name: str = "") -> AttentionRun:
    """Return what ``tiaft probe mil --out RUN`` kept of the feature set `name`, or of the only one.

    Raises TiaftError.
    """
    folder = Path(run) / FOLDER
    known = sorted(path.parent.name for path in folder.glob(f"*/{RUN}"))
    if not known:
        raise TiaftError(f"{run} holds no attention: `tiaft probe mil … --out` writes it")
    if not name and len(known) > 1:
        raise TiaftError(
            f"{run} holds attention of several feature sets: name one of {some(known)}"
        )
    if name and name not in known:
        raise TiaftError(f"{run} holds no attention of {name}, but of {some(known)}")
    folder = folder / (name or known[0])
    try:
        found = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if (found["schema"], found["version"]) != (_SCHEMA, _VERSION):
            raise ValueError("another schema")
        bags = found["bags"]
        text = {what: np.array([bag[what] for bag in bags]) for what in ("key", "group", "label")}
        return AttentionRun(
            folder,
            folder.name,
            found["unit"],
            tuple(found["classes"]),
            text["key"],
            text["group"],
            text["label"],
            np.array([bag["fold"] for bag in bags], dtype=np.int64),
            {store: bag["key"] for bag in bags for store in bag["stores"]},
            tuple(found["models"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TiaftError(f"{folder / RUN} is damaged: run `tiaft probe mil` again") from error


def _head(
    place: Path, bags: Bags, problem: Problem, fold: int, seed: int, recipe: Recipe
) -> Head | None:
    """Return the head of a fold of the first repeat; None where there is one class to learn."""
    path = place / head_name(fold)
    if path.is_file():
        return load_head(path)
    learn = problem.folds[0] != fold
    codes = np.unique(problem.targets[learn], return_inverse=True)
    if len(codes[0]) < 2:
        return None
    names = tuple(problem.classes[code] for code in codes[0])
    own = fold_seed(fold_seed(seed, 0), fold)
    trained = train(bags[learn], codes[1], len(names), problem.groups[learn], own, recipe)
    about = {"fold": fold, "epoch": trained.epoch, "bags": int(learn.sum())}
    chose = np.flatnonzero(learn)[trained.choosing]
    about[CHOSE] = [bags.bags[row].key for row in chose]
    save_head(path, trained.net, names, about)
    return load_head(path)


def _keep_tiles(place: Path, bags: Bags, row: int, fold: int, heads: list[Head | None]) -> None:
    """Write the attention to a bag's tiles, a file a store."""
    bag = bags.bags[row]
    blocks = [_raw(heads, block) for block in bags.blocks(row)]
    logits = np.concatenate(blocks, axis=1)
    attention = torch.from_numpy(logits[fold]).double().softmax(0).float().numpy()
    for store, rows in _parts(bag):
        arrays: dict[str, Any] = {
            "bag": np.array(bag.key),
            "fold": np.array(fold),
            "logits": logits[:, rows],
            "attention": attention[rows],
            "tiles_sha256": np.array(read_store(store).facts["tiles_sha256"]),
        }
        with write_atomically(place / tiles_name(store)) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def _parts(bag: Bag) -> Iterator[tuple[Path, slice]]:
    """Give each store of a bag, and which of the bag's tiles are its."""
    ends = np.cumsum([0, *bag.counts]).tolist()
    for store, begin, end in zip(bag.stores, ends, ends[1:], strict=False):
        yield store, slice(begin, end)


@torch.no_grad()
def _raw(heads: list[Head | None], block: np.ndarray) -> np.ndarray:
    """Return raw logits (K, n) float32 of tiles (n, D) by all heads."""
    features = torch.from_numpy(block)
    nothing = torch.full((len(block),), torch.nan)
    rows = [nothing if h is None else h.net.attend(h.net.encode(features)) for h in heads]
    return torch.stack(rows).numpy()


def _keep_run(place: Path, experiment: Experiment, name: str, bags: Bags, problem: Problem) -> None:
    rows = [
        {
            "key": bag.key,
            "group": str(problem.groups[row]),
            "label": problem.classes[problem.targets[row]],
            "fold": int(problem.folds[0, row]),
            "stores": [store.name for store in bag.stores],
        }
        for row, bag in enumerate(bags.bags)
    ]
    found = {
        "schema": _SCHEMA,
        "version": _VERSION,
        "unit": experiment.unit,
        "classes": list(problem.classes),
        "models": experiment.sources["features"][name].get("models", []),
        "bags": rows,
    }
    with write_atomically(place / RUN) as part:
        part.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_tiles(path: Path) -> TileAttention:
    try:
        with np.load(path, allow_pickle=False) as file:
            return TileAttention(
                str(file["bag"]),
                int(file["fold"]),
                file["logits"],
                file["attention"],
                str(file["tiles_sha256"]),
            )
    except Exception as error:  # zipfile and numpy raise what they like
        raise TiaftError(f"{path} is damaged or gone: run `tiaft probe mil` again") from error
