"""The study of concepts: on which tiles, what layers tell of them, what they do to classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.interpretability.concepts import directions as d
from tiaft_extensions.interpretability.concepts.measured import (
    Concepts,
    find_concepts,
    measure_concepts,
    refuse_constant,
)
from tiaft_extensions.interpretability.concepts.regression import (
    RIDGE,
    Fits,
    make_splits,
    regress,
    standard_error,
)
from tiaft_extensions.interpretability.pick import class_index, confident_tiles, read_tiles
from tiaft_extensions.interpretability.subject import (
    FINE_TUNED,
    Subject,
    activations,
    default_layers,
    layers_of,
    variants,
)
from tiaft_extensions.interpretability.subject import layer as find_layer
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.probes.statistics import benjamini_hochberg, paper_t, permuted_p
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.tileset import TileSet

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a study is to do; the paper's numbers are the defaults (section 2, and its code).

    `layers` and `classes` of none are chosen. `how` is the way of regression behind directions and
    Br. `permutations` of none, or `repetitions` below 2, leave out what they are for.
    """

    layers: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    pretrained: str | Path | None = None
    how: str = RIDGE
    splits: int = 10
    repetitions: int = 30  # of the t tests (Graziani et al. 2018)
    permutations: int = 999
    at_least: float = 0.99
    tiles_a_class: int = 50
    relevance: bool = True
    seed: int = 0


@dataclass
class Study:
    """What was found: `r2` has a row a network, layer and concept; `relevance` one a layer, concept
    and class, of the model itself. `notes` are for people.
    """  # fmt: skip

    tiles: TileSet
    concepts: Concepts
    layers: tuple[str, ...]
    r2: list[Row] = field(default_factory=list)
    relevance: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose_tiles(
    tileset: TileSet,
    names: Sequence[str],
    given: Sequence[Concepts] = (),
    *,
    count: int = 1500,
    seed: int = 0,
) -> tuple[TileSet, Concepts, list[str]]:
    """Return up to `count` random tiles that have all concepts, these, and notes for people.

    1,500 leave 1,000 to each fit, as many as the paper fits. `names` are measured here; `given`
    hold values of all tiles of the set. Raises TiaftError where hardly any tile has all concepts,
    or one is constant.
    """
    find_concepts(names)
    known = Concepts((), np.zeros((len(tileset), 0)))
    for more in given:
        known = known.beside(more)
    there = np.flatnonzero(np.isfinite(known.values).all(axis=1))
    chosen = np.sort(np.random.default_rng(seed).permutation(there)[:count])
    tiles = tileset.subset(chosen)
    concepts = measure_concepts(tiles, names).beside(Concepts(known.names, known.values[chosen]))
    if not concepts.names:
        raise TiaftError("no concept: name some (--concepts), or bring a table (--table)")
    whole = np.isfinite(concepts.values).all(axis=1)
    concepts = Concepts(concepts.names, concepts.values[whole])
    lacking = len(tileset) - len(there) + int((~whole).sum())
    if whole.sum() < 4:
        raise TiaftError(
            f"{int(whole.sum())} tiles of {tileset.root} have a value for each of "
            f"{', '.join(concepts.names)}: leave one out, or bring more tiles"
        )
    refuse_constant(concepts)
    notes = [f"Tiles left out, which lack a value for a concept: {lacking}."] if lacking else []
    return tiles.subset(np.flatnonzero(whole)), concepts, notes


def run_study(subject: Subject, tiles: TileSet, concepts: Concepts, asked: Asked) -> Study:
    """Regress concepts at layers of the model, with its own, pretrained and random weights.

    Raises TiaftError for unknown layers and classes, and for a model without gradients.
    """
    layers = tuple(asked.layers) or tuple(default_layers(subject))
    for name in layers:
        find_layer(subject, name)
    for cls in asked.classes:
        class_index(subject, cls)
    found = Study(tiles, concepts, layers)
    splits = make_splits(tiles.groups, asked.splits, asked.seed)
    networks = variants(subject, asked.pretrained, asked.seed)
    pixels = read_tiles(subject, tiles, list(range(len(tiles))))
    for network, version in networks.items():
        features = _activations(version, pixels, layers, network)
        with progress(len(layers), f"Regressing ({network})", "layer", wanted=None) as bar:
            for name in layers:
                fits = regress(features[name], concepts.values, splits, asked.seed)
                found.r2 += _r2_rows(network, name, features[name], concepts.names, fits)
                bar.update()
        if network == FINE_TUNED and asked.relevance:
            _relevance(found, subject, features, asked)
    _warn_of_width(found, layers_of(subject))
    return found


def _activations(
    subject: Subject, pixels: np.ndarray, layers: Sequence[str], network: str
) -> dict[str, np.ndarray]:
    features = activations(subject, pixels, layers)
    for name, values in features.items():
        if not np.isfinite(values).all():
            raise Stopped(f"{subject.name} ({network}) gives NaN or infinity at {name}")
    return features


def _r2_rows(
    network: str, layer: str, features: np.ndarray, names: Sequence[str], fits: Fits
) -> list[Row]:
    about = {"network": network, "layer": layer, "channels": features.shape[1]}
    about |= {"tiles": len(features), "splits": len(fits.null)}
    rows = []
    for place, concept in enumerate(names):
        row: Row = {**about, "concept": concept, "r2_null": fits.null.mean()}
        for name in ("in_sample", "permuted", "held_out", "ridge"):
            values = getattr(fits, name)[:, place]
            row |= {f"r2_{name}": values.mean(), f"se_{name}": standard_error(values)}
        rows.append(row)
    return rows


def _relevance(
    found: Study, subject: Subject, features: dict[str, np.ndarray], asked: Asked
) -> None:
    """Add what each concept does to each class of the model, at each layer."""
    if not subject.classes:
        found.notes.append(f"{subject.name} has no classes: no TCAV and no Br.")
        return
    sure = _sure_tiles(found, subject, asked)
    parts = make_splits(found.tiles.groups, max(2, asked.repetitions), asked.seed + 1) > 0
    held_out = "r2_ridge" if asked.how == RIDGE else "r2_held_out"
    for layer in found.layers:
        told = [r[held_out] for r in found.r2 if (r["network"], r["layer"]) == (FINE_TUNED, layer)]
        known = _Directions(
            features[layer].astype(np.float64), found.concepts.values, np.array(told), parts, asked
        )
        for cls, tiles in sure.items():
            gradients = d.pooled_gradients(subject, tiles, layer, class_index(subject, cls))
            for row, name in zip(known.rows(gradients), found.concepts.names, strict=True):
                found.relevance.append({"layer": layer, "concept": name, "class": cls, **row})
    for p in ("tcav_p", "br_p"):
        q = benjamini_hochberg(np.array([row[p] for row in found.relevance], float))
        for row, value in zip(found.relevance, q.tolist(), strict=True):
            row[p.replace("_p", "_q")] = value


def _sure_tiles(found: Study, subject: Subject, asked: Asked) -> dict[str, np.ndarray]:
    """Return tiles of each class that the model is sure of; a class without any is noted."""
    labelled = [name for name in subject.classes if found.tiles.counts.get(name)]
    sure, faults = {}, []
    for cls in asked.classes or labelled:
        try:
            options = {"at_least": asked.at_least, "count": asked.tiles_a_class}
            sure[cls] = confident_tiles(subject, found.tiles, cls, seed=asked.seed, **options)[0]
        except TiaftError as error:
            if asked.classes or isinstance(error, Stopped):
                raise
            faults.append(error)
    if faults and not sure:
        raise faults[0]
    if not sure:
        raise TiaftError(
            f"{found.tiles.root} has no tile of a class of {subject.name} "
            f"({', '.join(subject.classes)}): TCAV and Br need them; --no-relevance leaves them out"
        )
    found.notes += [f"No TCAV and Br of a class: {error}." for error in faults]
    return sure


class _Directions:
    """Directions of concepts in a layer: of all tiles, of each repetition, of permuted values."""

    def __init__(
        self,
        features: np.ndarray,
        values: np.ndarray,
        held_out: np.ndarray,
        parts: np.ndarray,
        asked: Asked,
    ):
        self.r2 = held_out
        self.all = d.directions(features, values, asked.how)
        self.each = [d.directions(features[part], values[part], asked.how) for part in parts]
        self.agreement = d.agreement(self.each, self.all)
        self.repetitions = asked.repetitions
        rng = np.random.default_rng(asked.seed)
        permuted = [rng.permutation(values, axis=0) for _ in range(asked.permutations)]
        self.null = d.directions(features, np.hstack(permuted), asked.how) if permuted else None

    def rows(self, gradients: np.ndarray) -> list[Row]:
        """Return TCAV, Br and their tests for each concept; `gradients` are (m, channels)."""
        sensitivities = gradients @ self.all
        score, strength = d.tcav(sensitivities), d.strength(sensitivities)
        br = d.relevance(sensitivities, self.r2)
        each = [gradients @ direction for direction in self.each]
        t = {
            "tcav_t_p": _t_test([d.tcav(one) - 0.5 for one in each], self.repetitions),
            "br_t_p": _t_test([d.relevance(one, self.r2) for one in each], self.repetitions),
        }
        p = {
            "tcav_p": self._p(np.abs(score - 0.5), gradients, lambda s: np.abs(d.tcav(s) - 0.5)),
            "br_p": self._p(np.abs(strength), gradients, lambda s: np.abs(d.strength(s))),
        }
        columns = {
            "tcav": score, "br": br, "r2": self.r2, "agreement": self.agreement, **t, **p,
        }  # fmt: skip
        return [
            {"tiles": len(gradients)} | {name: float(all_[k]) for name, all_ in columns.items()}
            for k in range(len(score))
        ]

    def _p(self, seen: np.ndarray, gradients: np.ndarray, size: Callable) -> np.ndarray:
        """Return p (K,): how often directions of permuted values are as far from their null."""
        if self.null is None:
            return np.full(len(seen), np.nan)
        null = size(gradients @ self.null).reshape(-1, len(seen))
        null = np.nan_to_num(null, nan=np.inf)  # a strength without any spread
        return np.where(np.isfinite(seen), permuted_p(seen, null), np.nan)


def _t_test(differences: Sequence[np.ndarray], repetitions: int) -> np.ndarray:
    """Return p (K,) of Student's t over repetitions, as if they were independent: they are not."""
    if repetitions < 2:
        return np.full(len(differences[0]), np.nan)
    return np.array([paper_t(column).p for column in np.array(differences).T])


def _warn_of_width(found: Study, widths: dict[str, int]) -> None:
    blind = {row["layer"] for row in found.r2 if row["r2_null"] > 0.99}
    wide = [f"{name} ({widths[name]})" for name in found.layers if name in blind]
    if wide:
        found.notes.append(
            f"At {', '.join(wide)} there are as many channels as tiles that a regression is fitted "
            "to: R² in-sample is 1 whatever the concept."
        )
