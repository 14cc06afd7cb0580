"""A job's slides and genes, checked before anything is learnt from them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tiaft_extensions.transcriptomics.expression.scaling import GeneScale, scale_genes
from tiaft_extensions.transcriptomics.tune.samples import FEWEST
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.interface import FinetuneJob, Samples
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.words import some

_FEW = 2


@dataclass(frozen=True)
class Data:
    """A job's slides by name of the set, and the genes that are learnt from."""

    sets: dict[str, Samples]
    scale: GeneScale
    left: LeftOut


def check_data(job: FinetuneJob, settings: TuneSettings, objective: str) -> Data:
    """Return the slides and genes of a job. Raises TiaftError for what cannot be learnt from."""
    sets = {"train": job.train, "val": job.val, "test": job.test}
    samples: dict[str, Samples] = {}
    for name, its in sets.items():
        if its is not None:
            samples[name] = _check_set(name, its)
    train = samples["train"]
    _refuse_shared(samples)
    for name, its in samples.items():
        if its.target_names != train.target_names:
            raise TiaftError(f"the {name} slides have other genes than the training slides")
    patients = patients_of(train)
    _refuse_few(job, settings, objective, samples)
    left = LeftOut()
    values = np.array(train.targets, dtype=np.float64)
    # A patient counts once, whatever the number of slides.
    first = sorted({patient: row for row, patient in reversed(list(enumerate(patients)))}.values())
    scale = scale_genes(values[first], train.target_names, most=settings.genes, left=left)
    return Data(samples, scale, left)


def patients_of(samples: Samples) -> list[str]:
    """Return the patient of each slide; one without is its own."""
    return [group or f"slide {n}" for n, group in enumerate(samples.groups)]


def _refuse_few(
    job: FinetuneJob, settings: TuneSettings, objective: str, samples: Mapping[str, Samples]
) -> None:
    count = len(set(patients_of(samples["train"])))
    if count < _FEW:
        raise TiaftError(f"{count} patients to learn from: at least {_FEW} are needed")
    val = set(patients_of(samples["val"])) if "val" in samples else set()
    # Told from nobody, its loss is 0 in each epoch, and the first the best.
    if objective == "contrastive" and len(val) == 1:
        raise TiaftError(
            "1 patient to choose the epoch by is told from no other: give two at least, or none "
            "(--val-share 0)"
        )
    if "test" in samples and (count := len(set(patients_of(samples["test"])))) < FEWEST:
        raise TiaftError(
            f"{count} patients to test on: correlations need {FEWEST} at least; give more "
            "patients, or no test"
        )
    processes, slides = job.devices * job.nodes, len(samples["train"].files)
    if processes > min(slides, settings.slides):
        raise TiaftError(
            f"{processes} processes need {processes} slides in a step, one each: there are "
            f"{slides} to learn from, and setting slides is {settings.slides}"
        )


def _check_set(name: str, samples: object) -> Samples:
    if not isinstance(samples, Samples):
        raise TiaftError(f"{name}: slides with expression are wanted (Samples), not tile sets")
    shape = np.shape(samples.targets)
    if len(shape) != 2 or shape != (len(samples.files), len(samples.target_names)):
        raise TiaftError(
            f"{name}: {len(samples.files)} slides and {len(samples.target_names)} genes, but "
            f"expression of shape {shape}"
        )
    empty = [str(n) for n, files in enumerate(samples.files) if not files]
    if empty:
        raise TiaftError(f"{name}: slides without a tile: number {some(empty)}: leave them out")
    bad = np.argwhere(~np.isfinite(np.array(samples.targets, dtype=np.float64)))
    if len(bad):
        row, gene = bad[0].tolist()
        raise TiaftError(
            f"{name}: {len(bad)} values of expression are NaN or infinite, the first of gene "
            f"{samples.target_names[gene]} in slide {samples.groups[row] or row}"
        )
    return samples


def _refuse_shared(sets: Mapping[str, Samples]) -> None:
    named = {name: {g for g in its.groups if g is not None} for name, its in sets.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(named.get(one, set()) & named.get(other, set()))
        if shared:
            raise TiaftError(f"{len(shared)} patients stand in {one} and {other}: {some(shared)}")
