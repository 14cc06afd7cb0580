"""A comparison as one resumable run: models, feature stores, attention pooling, one table."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_extensions.histotransfer.compare.costs import Cost, cost_of
from tiaft_extensions.histotransfer.compare.encoders import (
    Encoder,
    grid_of,
    make_model,
    read_encoders,
)
from tiaft_extensions.histotransfer.compare.questions import MARGIN, Answer, answers
from tiaft_extensions.histotransfer.compare.rows import Row, make_rows
from tiaft_extensions.histotransfer.compare.stores import Stored, extract, stored
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, refuse_unwritable, sha256_of, write_atomically
from tiaft_plugin.probes.compare import compare_runs
from tiaft_plugin.probes.interface import Result
from tiaft_plugin.probes.matching import match
from tiaft_plugin.probes.outputs import read_result
from tiaft_plugin.probes.reading import read_inputs
from tiaft_plugin.probes.run import find_probe, run_probe
from tiaft_plugin.probes.settings import COLOUR
from tiaft_plugin.tiles.words import some

MODELS, FEATURES, PROBES, TOGETHER = "encoders", "features", "probes", "probe"
STUDY, COSTS, SCHEMA = "comparison.json", "costs.json", "tiaft-comparison"
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Settings:
    """How encoders are compared: `probe` is ``mil`` or ``mil-gated``, `options` are its own.

    The rest is run_probe's, but without its leak control, which costs most and compares nothing.

    `tile_size` (px) and `mpp` (µm/px) are for encoders that bring none; None: as the first model
    that is compared has them, else 224 px and 0.5 µm/px.
    """

    labels: Path
    patients: Path | None = None
    probe: str = "mil"
    folds: int = 5
    repeats: int = 3
    permutations: int = 0
    draws: int = 2000
    seed: int = 0
    workers: int = 1
    unmatched: Any = "refuse"
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str | None = None
    margin: float = MARGIN
    sort: str = "auroc"
    tile_size: int | None = None
    mpp: float | None = None

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides a result of the probe."""
        names = ("folds", "repeats", "permutations", "draws", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Compared:
    """A finished comparison: a row an encoder, answers, and what readers should know."""

    rows: list[Row]
    answers: list[Answer]
    reference: str
    result: Result
    notes: list[str] = field(default_factory=list)


def prepare(texts: Sequence[str], ready: Mapping[str, Path], settings: Settings) -> list[Encoder]:
    """Return the encoders to extract features with, then those of `ready` stores.

    Raises TiaftError before long work: for unknown ones, names given twice, fewer than two.
    """
    encoders = read_encoders(texts)
    names = [*(encoder.name for encoder in encoders), *ready]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TiaftError(f"--features {twice[0]}: there is an encoder of this name already")
    if odd := [name for name in names if name in (".", "..")]:  # they name folders in OUT
        raise TiaftError(f"{odd[0]!r} cannot name an encoder: NAME=ENCODER, NAME=STORES")
    if len(names) < 2:
        raise TiaftError("a comparison needs two encoders: --encoder, or --features of stores")
    if settings.reference is not None and settings.reference not in names:
        raise TiaftError(
            f"--reference {settings.reference}: no encoder has this name; there are {some(names)}"
        )
    if not settings.labels.is_file():
        raise TiaftError(f"{settings.labels}: no such table of labels")
    find_probe(settings.probe)
    return encoders + [_ready(name, path) for name, path in ready.items()]


def run_comparison(
    encoders: Sequence[Encoder],
    jobs: Sequence[SlideJob],
    ready: Mapping[str, Path],
    out: Path,
    settings: Settings,
    *,
    engine: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> Compared:
    """Do what is not done yet, and write OUT; `encoders` are `prepare`'s, `engine` make_engine's.

    Interrupted, the same call goes on; encoders may be added. Raises TiaftError, Stopped.
    """
    from tiaft_extensions.histotransfer.compare.report import write_comparison

    refuse_unwritable(out)
    refuse_foreign(out)
    with locked(out / STUDY, wait=False):
        if overwrite:
            refuse_lost(encoders, jobs, ready, out, settings)
            begin(out)
            remove(out)
        for encoder in encoders:  # before hours of extraction
            refuse_changed(encoder.name, out / PROBES / encoder.name, settings)
        if not (out / STUDY).is_file():  # else what it says stands until there is more to say
            begin(out)
        tile_size, mpp = _grid(encoders, settings)
        made = [
            make_model(encoder, out / MODELS, tile_size, mpp, settings.seed) for encoder in encoders
        ]
        places = {e.name: ready.get(e.name, out / FEATURES / e.name) for e in made}
        for number, encoder in enumerate(made, start=1):
            if encoder.name not in ready:
                say(f"{encoder.name}: encoder {number} of {len(made)}")
                extract(encoder, jobs, places[encoder.name], say=say, **(engine or {}))
        for number, (name, place) in enumerate(places.items()):
            colour = number == 0  # which is the same for all
            _probe(name, place, out / PROBES / name, settings, say, colour=colour)
        found = compare_runs(
            [out / PROBES / name for name in places],
            out / TOGETHER,
            reference=settings.reference or made[0].name,
            overwrite=True,
        )
        facts = {name: stored(place, name) for name, place in places.items()}
        costs = _costs(made, facts, out)
        rows = make_rows(made, facts, costs, found, settings.sort)
        compared = Compared(
            rows,
            answers(rows, found, settings.margin),
            settings.reference or made[0].name,
            found,
            _notes(facts, found),
        )
        write_comparison(out, compared, settings)
    return compared


def refuse_foreign(out: Path) -> None:
    """Raise TiaftError where OUT is something else than a comparison."""
    if out.is_file():
        raise TiaftError(f"{out} is a file: name a folder for the comparison")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out / STUDY):
        raise TiaftError(f"{out} is not of `tiaft histotransfer compare`: choose another folder")


def _is_ours(path: Path) -> bool:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        return False


def begin(out: Path) -> None:
    """Write down whose folder this is, and that nothing was compared in it yet."""
    with write_atomically(out / STUDY) as part:
        part.write_text(json.dumps({"schema": SCHEMA, "version": 1}), encoding="utf-8")


def refuse_lost(
    encoders: Sequence[Encoder],
    jobs: Sequence[SlideJob],
    ready: Mapping[str, Path],
    out: Path,
    settings: Settings,
) -> None:
    """Raise TiaftError, before OUT's comparison is removed, where a new one lacks what it needs."""
    missing = [str(job.slide) for job in jobs if not job.slide.exists()]
    if missing:
        raise TiaftError(f"{len(missing)} slides are not there: {some(missing)}")
    sources = [text for encoder in encoders for text in (encoder.model, encoder.init) if text]
    tables = [settings.labels, *([settings.patients] if settings.patients else [])]
    inputs = [*map(Path, sources), *ready.values(), *tables, *(job.slide for job in jobs)]
    removed = [(out / name).resolve() for name in (MODELS, FEATURES, PROBES, TOGETHER)]
    for path in inputs:
        if any(path.resolve().is_relative_to(place) for place in removed):
            raise TiaftError(f"--overwrite would remove {path}: move it, or choose another --out")


def remove(out: Path) -> None:
    """Remove what a comparison wrote into its folder, and nothing else."""
    for name in (MODELS, FEATURES, PROBES, TOGETHER):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / COSTS).unlink(missing_ok=True)


def _ready(name: str, path: Path) -> Encoder:
    """Return the encoder of stores that are there: what they and the model's card say of it."""
    from tiaft_plugin.zoo.names import find

    facts = stored(path, name)
    named = find(facts.model) if not set("/\\") & set(facts.model) else None
    if named is not None and named.file is not None and named.file.is_file():
        from tiaft_plugin.network.card import read_card

        if sha256_of(named.file) == facts.sha256:
            backbone, _, cut = read_card(named.file).backbone.partition(":")
            return Encoder(name, backbone, cut, named.base, model=facts.model)
    return Encoder(name, "", "", facts.model, model=facts.model)


def _grid(encoders: Sequence[Encoder], settings: Settings) -> tuple[int, float]:
    size, mpp = grid_of(encoders)
    return settings.tile_size or size, settings.mpp or mpp


def _probe(
    name: str, place: Path, out: Path, settings: Settings, say: Say, *, colour: bool
) -> None:
    """Cross-validate attention pooling on an encoder's stores, or find that it was done."""
    probe = find_probe(settings.probe).thing
    tables, targets = read_inputs(
        probe, [f"{name}={place}"], settings.labels, patients=settings.patients
    )
    if (out / "summary.json").is_file():
        made = read_result(out)
        before = made.summary["inputs"]["features"][name]
        if before.get("sha256") != tables[0].source.get("sha256"):
            raise _changed(name, ["the features"])
        unit = tables[0].unit or probe.unit
        now = match(tables, targets, unit=unit, unmatched=settings.unmatched)
        rows = ("keys", "groups")
        if not all(np.array_equal(getattr(now, of), made.predictions[of]) for of in rows):
            raise _changed(name, ["the patients of slides"])
        return
    say(f"{name}: attention pooling")
    run_probe(
        settings.probe,
        tables if colour else [replace(table, colour=None) for table in tables],
        targets,
        out,
        workers=settings.workers,
        unmatched=settings.unmatched,
        options=settings.options,
        leak_control=False,
        **settings.protocol,
    )


def refuse_changed(name: str, out: Path, settings: Settings) -> None:
    """Raise TiaftError where a finished run in OUT is of something else than is asked now."""
    if not (out / "summary.json").is_file():
        return
    summary = read_result(out).summary
    before, probe = summary["protocol"], find_probe(settings.probe).thing
    changed = [f"--{key}" for key, value in settings.protocol.items() if before[key] != value]
    if summary["probe"]["name"] != settings.probe:
        changed.append("the probe")
    own, made = {**probe.settings, **settings.options}, summary["probe"]["settings"]
    changed += [f"--{key}" for key, value in own.items() if _plain(made.get(key)) != _plain(value)]
    if summary["inputs"]["labels"].get("sha256") != sha256_of(settings.labels):
        changed.append("the labels")
    if changed:
        raise _changed(name, changed)


def _changed(name: str, what: Sequence[str]) -> TiaftError:
    return TiaftError(
        f"{name} was compared before, and {some(what)} changed since: choose another --out, or "
        "pass --overwrite to begin anew"
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _costs(encoders: Sequence[Encoder], facts: Mapping[str, Stored], out: Path) -> dict[str, Cost]:
    """Return what encoders cost, counted once a model."""
    path, known = out / COSTS, {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
    found = {}
    for encoder in encoders:
        sha256 = facts[encoder.name].sha256
        cost = Cost(**known[sha256]) if sha256 in known else cost_of(encoder.model, sha256)
        if cost != Cost():  # else its model may be here the next time
            known[sha256] = vars(cost)
        found[encoder.name] = cost
    with write_atomically(path) as part:
        part.write_text(json.dumps(known, indent=1), encoding="utf-8")
    return found


def _notes(facts: Mapping[str, Stored], result: Result) -> list[str]:
    """Return what readers should know before they believe a number."""
    lacks_colour = not any(row["baseline"] == COLOUR for row in result.summary["baselines"])
    notes = [
        text
        for text in result.summary["warnings"]
        if lacks_colour or not text.startswith("The features bring no colour")
    ]
    grids: dict[str, list[str]] = {}
    for name, each in facts.items():
        grids.setdefault(f"{each.tile_size} px at {each.mpp:g} µm/px", []).append(name)
    if len(grids) > 1:
        listed = "; ".join(f"{grid}: {some(names)}" for grid, names in grids.items())
        notes.append(f"Encoders saw tiles of several sizes ({listed}), which adds to differences.")
    return notes
