"""The cohort: which slides, patients and genes of TCGA are worked on (section 3.1)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, sha256_of, write_atomically, write_csv
from tiaft_plugin.reproduce import paper
from tiaft_plugin.reproduce.barcodes import PRIMARY
from tiaft_plugin.reproduce.expression import read_expression
from tiaft_plugin.reproduce.genes import read_genes
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.reproduce.manifest import Slide, choose_slides, read_manifest
from tiaft_plugin.reproduce.mutations import COUNTED, read_mutations, read_sequenced
from tiaft_plugin.tiles.words import some

if TYPE_CHECKING:
    from pandas import DataFrame

SLIDES, EXPRESSION, MUTATIONS = "slides.csv", "expression.csv", "mutations.csv"
LEFT_OUT, SUMMARY = "left_out.csv", "cohort.json"
FILES = (SLIDES, EXPRESSION, MUTATIONS, LEFT_OUT, SUMMARY)
TABLES = ("expression", "mutations")


@dataclass(frozen=True, kw_only=True)
class CohortJob:
    """What a cohort is made of. The defaults are the paper's (sections 3.1 and 4.2, 4.3).

    `expression` and `mutations` are tables, several parts of one each; `genes` is a list or None
    (all genes); `choose` of those found are drawn at random with `seed`. A patient has to be in
    the tables named in `need`. `exclude` lists slides or patients to leave out, one a line.
    """

    manifest: Path
    expression: tuple[Path, ...]
    mutations: tuple[Path, ...]
    genes: Path | None = None
    mutated_genes: tuple[str, ...] = paper.MUTATED_GENES
    choose: int | None = None
    seed: int = 0
    sequenced: Path | None = None
    exclude: Path | None = None
    sample_types: tuple[str, ...] = (PRIMARY,)
    need: tuple[str, ...] = TABLES


@dataclass(frozen=True)
class Cohort:
    """Slides, expression (patients × genes) and mutations of the same patients; and the rest."""

    slides: list[Slide]
    expression: "DataFrame"
    mutations: dict[str, dict[str, int]]
    left: LeftOut = field(default_factory=LeftOut)

    @property
    def patients(self) -> list[str]:
        """The patients, sorted."""
        return sorted({slide.patient for slide in self.slides})

    @property
    def counts(self) -> dict[str, int]:
        """How many there are of what the paper counts."""
        return {
            "patients": len(self.patients),
            "slides": len(self.slides),
            "genes": self.expression.shape[1],
            "mutated genes": len(next(iter(self.mutations.values()), {})),
        }


PAPER = {
    "patients": paper.PATIENTS,
    "slides": paper.SLIDES,
    "genes": paper.GENES,
    "mutated genes": len(paper.MUTATED_GENES),
}


def make_cohort(job: CohortJob) -> Cohort:
    """Read everything and choose. Raises TiaftError, also where nobody is left."""
    unknown = [name for name in job.need if name not in TABLES]
    if unknown:
        raise TiaftError(f"a patient cannot need {some(unknown)}: there are {', '.join(TABLES)}")
    left = LeftOut()
    slides = choose_slides(read_manifest(job.manifest), job.sample_types, left)
    genes = None if job.genes is None else read_genes(job.genes)
    expression = read_expression(job.expression, genes, job.sample_types, left)
    sequenced = None if job.sequenced is None else read_sequenced(job.sequenced)
    mutations = read_mutations(
        job.mutations, job.mutated_genes, job.sample_types, left, sequenced=sequenced
    )
    if job.exclude is not None:
        slides = _without(slides, job.exclude, left)
    known = {"expression": set(expression.index), "mutations": set(mutations)}
    wanted = _patients(slides, known, job, left)
    expression = expression.loc[[patient for patient in expression.index if patient in wanted]]
    return Cohort(
        [slide for slide in slides if slide.patient in wanted],
        _choose_genes(expression, job, left),
        {patient: row for patient, row in mutations.items() if patient in wanted},
        left,
    )


def write_cohort(job: CohortJob, out: Path, *, overwrite: bool = False) -> Cohort:
    """Make a cohort and write its tables into `out`, each atomically. Raises TiaftError."""
    if not overwrite:
        for name in FILES:
            refuse_existing(out / name)
    cohort = make_cohort(job)
    write_csv(out / SLIDES, ("slide", *Slide._fields[1:]), cohort.slides)
    genes = list(cohort.expression.columns)
    values = cohort.expression.to_numpy().tolist()
    rows = zip(cohort.expression.index, values, strict=True)
    write_csv(out / EXPRESSION, ("patient", *genes), ((p, *map(repr, row)) for p, row in rows))
    mutated = list(next(iter(cohort.mutations.values()), {}))
    write_csv(
        out / MUTATIONS,
        ("patient", *mutated),
        ((patient, *row.values()) for patient, row in cohort.mutations.items()),
    )
    cohort.left.write(out / LEFT_OUT)
    with write_atomically(out / SUMMARY) as part:
        text = json.dumps(_about(job, cohort), indent=1, ensure_ascii=False)
        part.write_text(text + "\n", encoding="utf-8")
    return cohort


def show_cohort(cohort: Cohort, say: Callable[[str], None]) -> None:
    """Tell what the cohort is, beside the paper's, and what was left out for which reasons."""
    say(f"{'':15}{'here':>8}{'paper':>8}")
    for name, number in cohort.counts.items():
        say(f"{name:15}{number:8}{PAPER[name]:8}")
    if cohort.left.lines:
        say(f"Left out, listed one by one in {LEFT_OUT}:")
        for line in cohort.left.summary():
            say(line)


def _patients(
    slides: Sequence[Slide], known: dict[str, set[str]], job: CohortJob, left: LeftOut
) -> set[str]:
    """Return the patients with slides and the needed tables; note all others."""
    with_slides = {slide.patient for slide in slides}
    wanted = set(with_slides)
    why = {
        "expression": "has slides, but is not in the expression table",
        "mutations": "has slides, but no row in the MAF: sequenced or not is not known "
        "(--sequenced lists those who were)",
    }
    for name in TABLES:
        if name in job.need:
            left.add("patient", sorted(wanted - known[name]), why[name])
            wanted &= known[name]
    others = set().union(*known.values()) - with_slides
    left.add("patient", sorted(others), "is in a table, but has no frozen slide here")
    left.add(
        "slide",
        [slide.file for slide in slides if slide.patient not in wanted],
        "its patient is left out",
    )
    if not wanted:
        reasons = "; ".join(line.strip() for line in left.summary()[:3])
        raise TiaftError(f"no patient is in all tables of the cohort ({reasons})")
    return wanted


def _without(slides: list[Slide], path: Path, left: LeftOut) -> list[Slide]:
    """Return the slides that a list of slides or patients does not name. Raises TiaftError."""
    try:
        names = set(path.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise TiaftError(f"{path} cannot be read: {error}") from error
    known = {name for slide in slides for name in _names_of(slide)}
    if names - known:
        strange = some(sorted(names - known))
        raise TiaftError(f"{path} names what is no slide or patient here: {strange}")
    out = [slide for slide in slides if names & set(_names_of(slide))]
    left.add("slide", [slide.file for slide in out], f"in {path.name}")
    return [slide for slide in slides if slide not in out]


def _names_of(slide: Slide) -> tuple[str, ...]:
    return slide.file, Path(slide.file).stem, slide.file.partition(".")[0], slide.patient


def _choose_genes(expression: "DataFrame", job: CohortJob, left: LeftOut) -> "DataFrame":
    """Leave out genes that are the same in every patient; draw `choose` of the rest."""
    values = expression.to_numpy()
    varies = values.max(axis=0) > values.min(axis=0) if len(values) else np.array([], bool)
    left.add("gene", expression.columns[~varies], "the same in every patient")
    expression = expression.loc[:, varies]
    found = expression.shape[1]
    if job.choose is None or job.choose == found:
        return expression
    if job.choose > found:
        raise TiaftError(f"{job.choose} genes are to be drawn, and {found} were found")
    drawn = np.random.default_rng(job.seed).choice(found, job.choose, replace=False)
    keep = np.isin(np.arange(found), drawn)
    left.add("gene", expression.columns[~keep], f"not drawn (seed {job.seed})")
    return expression.loc[:, keep]


def _about(job: CohortJob, cohort: Cohort) -> dict[str, Any]:
    """Return what ``cohort.json`` holds: counts, rules, and hashes of all that was read."""
    single = (job.manifest, job.genes, job.sequenced, job.exclude)
    inputs = [*(path for path in single if path), *job.expression, *job.mutations]
    return {
        "schema": "tiaft-cohort",
        "version": 1,
        "counts": cohort.counts,
        "paper": PAPER,
        "left_out": len(cohort.left.lines),
        "settings": {
            "sample_types": list(job.sample_types),
            "need": list(job.need),
            "choose": job.choose,
            "seed": job.seed,
            "mutated_genes": list(job.mutated_genes),
            "counted_as_mutation": list(COUNTED),
        },
        "inputs": {path.name: sha256_of(path) for path in inputs},
    }
