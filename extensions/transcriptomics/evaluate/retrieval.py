"""Zero-shot retrieval: a patient's expression by images, and back, after a fine-tuning."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.evaluate.features import FeatureCache
from tiaft_extensions.transcriptomics.evaluate.finished import Finished
from tiaft_extensions.transcriptomics.evaluate.models import Candidate, identity_of, name_of
from tiaft_extensions.transcriptomics.evaluate.report import aligned, write_table
from tiaft_extensions.transcriptomics.expression.pairs import match_slides
from tiaft_extensions.transcriptomics.expression.tables import Expression
from tiaft_extensions.transcriptomics.means import means_of
from tiaft_extensions.transcriptomics.tune.losses import Contrastive
from tiaft_extensions.transcriptomics.tune.scores import (
    CHANCE,
    DIRECTIONS,
    Score,
    cosines_of,
    ranks_of,
    retrieval_scores,
)
from tiaft_extensions.transcriptomics.tune.tested import BASE_RIDGE, JOINT, TUNED_HEAD, ridge
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.features import read_tiles
from tiaft_plugin.probes.stores import checked_chunks, open_stores
from tiaft_plugin.reproduce.leftout import LeftOut

SCORES, RANKS = "retrieval.csv", "ranks.csv"
FEWEST = 3  # patients: among fewer there is nothing to find


@dataclass(frozen=True)
class Retrieved:
    """Scores of each way to find (``tune.scores``), of `patients` the run has not seen.

    `ranks` are the places (P,) of what was to be found, by way and direction; `learnt` is how many
    patients the base learnt from.
    """

    patients: tuple[str, ...]
    learnt: int
    scores: list[Score]
    ranks: dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Pictures:
    """S slides of a source, sorted: `names` and `patients` (S,) text, and their features."""

    path: Path
    names: tuple[str, ...]
    patients: Mapping[str, str]

    def features(self) -> Iterator[np.ndarray]:
        """Give the features (n, D) of one slide's tiles after the other, in order of `names`."""
        if self.path.is_dir():
            stores = {store.facts["slide"]["name"]: store for store in open_stores(self.path, "")}
            for name in self.names:
                yield np.concatenate(list(checked_chunks(stores[name])))
            return
        tiles = read_tiles(self.path, "tiles")
        slides = _slides_of(tiles)
        for name in self.names:
            yield tiles.values[slides == name]


def read_pictures(source: Path, model: Candidate, cache: FeatureCache) -> Pictures:
    """Return the slides of tiles, or of a table of slides, with a model's features; makes them."""
    if is_cohort(source):
        path = cache.of_slides(source, model)
        stores = [store for store in open_stores(path, model.name) if len(store)]
        of = {s.facts["slide"]["name"]: s.facts["patient"] for s in stores}
        return Pictures(path, tuple(sorted(of)), {k: v for k, v in of.items() if v})
    path = cache.of_tiles(source, model)
    return Pictures(path, tuple(np.unique(_slides_of(read_tiles(path, "tiles"))).tolist()), {})


def is_cohort(source: Path) -> bool:
    """Whether a file is a table of slides, as `tiaft cohort` takes it, not a manifest of tiles."""
    if source.suffix.lower() != ".csv" or not source.is_file():
        return False
    with source.open(newline="", encoding="utf-8-sig") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
    return "slide" in header and "file" not in header


@dataclass(frozen=True)
class Paired:
    """S slides with expression: `genes` (S, G) as the run standardised them; `seen` (S,) by it."""

    slides: list[str]
    patients: np.ndarray
    genes: np.ndarray
    seen: np.ndarray

    def by_patient(self, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return the mean (P, ·) of the chosen slides of each patient, patients sorted."""
        return means_of(values[chosen], self.patients[chosen])


def retrieve(
    run: Finished,
    source: Path,
    expression: Expression,
    cache: FeatureCache,
    *,
    base: str = "",
    patients: Mapping[str, str] | None = None,
    seed: int = 0,
    left: LeftOut | None = None,
) -> Retrieved:
    """Rank each new patient's expression by its images among those of all, and the other way round.

    Patients that the run has seen are no part of it. A patient is the mean of its slides. `base`
    names a model: ridge regression, learnt on the mean of its features and expression of patients
    in `source` that the run has seen, ranks by what it predicts. Raises TiaftError.
    """
    own = Candidate("tuned", str(run.model), "", identity_of(str(run.model)))
    if base:
        identity_of(base)  # raises where there is no such model, before features are computed
    pictures = read_pictures(source, own, cache)
    pairs = _pair(run, source, pictures, expression, patients or {}, left)
    learnt = len(np.unique(pairs.patients[pairs.seen]))
    if base and learnt < FEWEST:
        raise TiaftError(
            f"--base {base} learns from the patients that {run.folder} has seen, and {source} "
            f"has {learnt} of them: give their slides, too"
        )
    embedded = dict(zip(pictures.names, map(run.embed, pictures.features()), strict=True))
    images = np.stack([embedded[slide] for slide in pairs.slides])
    ways = dict([_ranked(run, images, pairs)])
    if base:
        rows = _mean_features(base, source, pairs.slides, cache)
        fit = ridge(*(pairs.by_patient(each, pairs.seen) for each in (rows, pairs.genes)))
        told = fit(pairs.by_patient(rows, ~pairs.seen))
        ways[BASE_RIDGE] = cosines_of(told, pairs.by_patient(pairs.genes, ~pairs.seen))
    ranks = {
        (way, direction): ranks_of(its if number == 0 else its.T)
        for way, its in ways.items()
        for number, direction in enumerate(DIRECTIONS)
    }
    new = np.unique(pairs.patients[~pairs.seen])
    scores = retrieval_scores(ways, [BASE_RIDGE] if base else [], seed)
    return Retrieved(tuple(new.tolist()), learnt if base else 0, scores, ranks)


def _pair(
    run: Finished,
    source: Path,
    pictures: Pictures,
    expression: Expression,
    patients: Mapping[str, str],
    left: LeftOut | None,
) -> Paired:
    """Return slides with their patients' expression. Raises TiaftError for too few new ones."""
    scale = run.scale(expression)
    known = {**pictures.patients, **patients}
    found = match_slides(pictures.names, expression, patients=known, left=left)
    genes = scale(expression.values[found.rows]).astype(np.float64)
    learnt = list(run.learnt)
    either = np.isin(found.patients, learnt) | np.isin(found.slides, learnt)
    seen = np.isin(found.patients, found.patients[either])
    new = len(np.unique(found.patients[~seen]))
    if new < FEWEST:
        raise TiaftError(
            f"{source}: {new} patients with expression are new to {run.folder}, among whom "
            f"there is nothing to find: {FEWEST} are needed that it has not learnt from"
        )
    return Paired(found.slides.tolist(), found.patients, genes, seen)


def write_retrieved(out: Path, found: Retrieved) -> None:
    """Write ``retrieval.csv``, a row a measure and way, and ``ranks.csv``, a row a patient."""
    write_table(out / SCORES, Score._fields, (score._asdict() for score in found.scores))
    columns = ("patient", "way", "direction", "rank", "among")
    rows = (
        {"patient": patient, "way": way, "direction": direction, "rank": int(rank),
         "among": len(found.patients)}
        for (way, direction), ranks in found.ranks.items()
        for patient, rank in zip(found.patients, ranks.tolist(), strict=True)
    )  # fmt: skip
    write_table(out / RANKS, columns, rows)


def lines(found: Retrieved) -> list[str]:
    """Return the scores as the terminal shows them: a line a measure, beside chance."""
    ways = list(dict.fromkeys(way for way, _ in found.ranks))
    by: dict[Any, Score] = {(s.measure, s.way, s.against): s for s in found.scores}
    rows = [["", "chance", *ways, *([f"{ways[0]} − {BASE_RIDGE}"] if BASE_RIDGE in ways else [])]]
    for measure in dict.fromkeys(score.measure for score in found.scores):
        cells = [_span(by[measure, way, ""]) for way in ways]
        if BASE_RIDGE in ways:
            cells.append(_span(by[measure, ways[0], BASE_RIDGE], "+"))
        rows.append([measure, f"{by[measure, CHANCE, ''].value:.3g}", *cells])
    learnt = f"; {BASE_RIDGE} learnt from {found.learnt}" if found.learnt else ""
    return [
        f"{len(found.patients)} patients that the run has not seen{learnt}; 95 % intervals",
        *aligned(rows),
    ]


def _ranked(run: Finished, images: np.ndarray, pairs: Paired) -> tuple[str, np.ndarray]:
    """Return what the way is called, and cosines (P, P) of images in rows and expression."""
    observed = pairs.by_patient(pairs.genes, ~pairs.seen)
    if isinstance(run.tuned.objective, Contrastive):
        unit = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
        return JOINT, cosines_of(pairs.by_patient(unit, ~pairs.seen), run.predict(observed))
    told = pairs.by_patient(run.predict(images), ~pairs.seen)
    return TUNED_HEAD, cosines_of(told, observed)


def _mean_features(base: str, source: Path, slides: list[str], cache: FeatureCache) -> np.ndarray:
    """Return the mean (S, D) float64 of the features of each slide's tiles by a model."""
    pictures = read_pictures(source, Candidate(name_of(base), base, "", identity_of(base)), cache)
    means = (its.mean(axis=0, dtype=np.float64) for its in pictures.features())
    found = dict(zip(pictures.names, means, strict=True))
    return np.stack([found[slide] for slide in slides])


def _slides_of(tiles: Any) -> np.ndarray:
    return tiles.groups if tiles.groups is not None else tiles.labels


def _span(score: Score, sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.3f}" for number in (score.value, score.low, score.high))
    return f"{value} ({low} to {high})"
