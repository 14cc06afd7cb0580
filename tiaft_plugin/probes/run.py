"""Run a probe: the same folds for every feature set, baselines beside them, results in a folder."""

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tiaft_plugin import __version__
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import locked, refuse_unwritable
from tiaft_plugin.plugins import Registered, collect, plugin_manager
from tiaft_plugin.probes import baselines
from tiaft_plugin.probes.analysis import analyse, empty_models, trace_of
from tiaft_plugin.probes.crossval import Problem, fold_seed, predict_repeat, problems_of
from tiaft_plugin.probes.interface import Experiment, FeatureTable, Result, Targets, sound
from tiaft_plugin.probes.matching import Missing, Unmatched, match
from tiaft_plugin.probes.measured import Trace
from tiaft_plugin.probes.outputs import UNFINISHED, refuse_results, write_result
from tiaft_plugin.probes.packing import pack
from tiaft_plugin.probes.settings import COLOUR, Settings
from tiaft_plugin.probes.summary import summarise
from tiaft_plugin.probes.work import Piece, run_pieces
from tiaft_plugin.tiles.words import some


def run_probe(
    probe: str,
    tables: Sequence[FeatureTable],
    targets: Targets,
    out: Path | str | None = None,
    *,
    folds: int = 5,
    repeats: int = 50,
    seed: int = 0,
    grouped: bool = True,
    permutations: int = 99,
    draws: int = 2000,
    reference: str | None = None,
    select: str = "union",
    alpha: float = 0.05,
    workers: int = 1,
    cluster: str | None = None,
    unmatched: Unmatched = "refuse",
    missing: Missing = "refuse",
    options: Mapping[str, Any] | None = None,
    leak_control: bool = True,
    overwrite: bool = False,
    verbose: bool | None = True,
) -> Result:
    """Cross-validate a registered probe on feature sets, measure it, and write what it says.

    5 folds, 50 repeats: the paper's (section 3.3). `grouped` keeps the rows of a patient or slide
    in one fold; the paper's folds do not. `permutations` of the labels by group give p values of
    their own; `draws` are the bootstrap's. The others are compared with `reference`, the first set
    unless named. `select` says whose p values choose the significant genes: a set's name, or
    "union". `options` are the probe's own, by name; without `leak_control`, which trains 20 times
    more, it is left out. `out` is the folder for report.html, results.csv, summary.json,
    predictions.npz and run.json; the same inputs, seed and versions give the same bytes (but
    run.json), whatever `workers` and `cluster` (a Dask scheduler's address). An interrupted run,
    given again, goes on. Raises TiaftError.
    """
    registered = _with_options(find_probe(probe), options or {})
    unit = tables[0].unit if tables and tables[0].unit else registered.thing.unit
    experiment = match(tables, targets, unit=unit, unmatched=unmatched, missing=missing)
    settings = Settings(
        folds=folds,
        repeats=repeats,
        seed=seed,
        grouped=grouped,
        permutations=permutations,
        draws=draws,
        reference=reference or tables[0].name,
        select=select,
        alpha=alpha,
        leak_control=leak_control,
    )
    _check(experiment, settings, registered)
    problems = problems_of(experiment, folds=folds, repeats=repeats, seed=seed, grouped=grouped)
    how = (workers, cluster, verbose)
    if out is None:
        return _computed(registered, experiment, problems, settings, None, *how)
    out = Path(out)
    refuse_unwritable(out)
    with locked(out, wait=False):
        if not overwrite:
            refuse_results(out)
        begun = time.time()
        kept = out / UNFINISHED / _fingerprint(registered, experiment, settings)
        result = _computed(registered, experiment, problems, settings, kept, *how)
        _leave(registered, experiment, problems, seed, kept / "left", out)
        circumstances = {
            "seconds": round(time.time() - begun, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "workers": workers,
            "cluster": cluster,
            "cores": os.cpu_count(),
            "computer": platform.node(),
            "files": {table.name: table.source.get("files", []) for table in tables},
            "labels": targets.source.get("files", []),
        }
        write_result(out, result, circumstances)
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return result


def _leave(
    registered: Registered,
    experiment: Experiment,
    problems: list[Problem],
    seed: int,
    folder: Path,
    out: Path,
) -> None:
    """Let a probe that keeps more than scores write it, and put it where the results go."""
    leave = getattr(registered.thing, "leave", None)
    if leave is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for problem in problems:
        leave(folder, experiment, problem, seed)
    for path in sorted(folder.iterdir()):
        place = out / path.name
        if place.is_dir():
            shutil.rmtree(place)
        path.replace(place)


def find_probe(name: str) -> Registered:
    """Return a registered probe. Raises TiaftError, which lists them, where there is none."""
    probes = collect("register_probes")
    if name not in probes:
        raise TiaftError(f"there is no probe {name!r}; there are: {', '.join(sorted(probes))}")
    return sound(probes[name])


def _with_options(registered: Registered, options: Mapping[str, Any]) -> Registered:
    """Return a probe with options of its own. Raises TiaftError where it has none."""
    if not options:
        return registered
    if not hasattr(registered.thing, "with_options"):
        raise TiaftError(f"the probe {registered.name} has no options of its own")
    return replace(registered, thing=registered.thing.with_options(**options))


def _check(experiment: Experiment, settings: Settings, registered: Registered) -> None:
    sets = list(experiment.features)
    if COLOUR in sets:
        raise TiaftError(
            f"{COLOUR!r} is the name of the baseline that knows colour only: give the feature set "
            "another, NAME=PATH"
        )
    if "union" in sets and experiment.kind == "numbers":
        raise TiaftError("--select union means all sets: give the set 'union' another, NAME=PATH")
    for what, name in (("--reference", settings.reference), ("--select", settings.select)):
        if name not in sets and (what, name) != ("--select", "union"):
            raise TiaftError(f"{what} {name}: no feature set has this name; there are {some(sets)}")
    if settings.folds < 2 or settings.repeats < 1 or settings.draws < 100:
        raise TiaftError("two folds, one repeat and 100 bootstrap draws are the least")
    if 0 < settings.permutations < 99:
        raise TiaftError(
            f"{settings.permutations} permutations cannot give a p value of .01: 99 are the least, "
            "0 leaves them out"
        )
    if registered.thing.kind != experiment.kind:
        raise TiaftError(
            f"the probe {registered.name} predicts {registered.thing.kind}, the labels are "
            f"{experiment.kind}"
        )


def _computed(
    registered: Registered,
    experiment: Experiment,
    problems: list[Problem],
    settings: Settings,
    kept: Path | None,
    workers: int,
    cluster: str | None,
    verbose: bool | None,
) -> Result:
    """Compute all pieces, and make the result of them."""
    from threadpoolctl import threadpool_limits

    sets = dict(experiment.features)
    if experiment.colour is not None:
        sets[COLOUR] = experiment.colour
    names = list(sets)
    context = (registered.thing, list(sets.values()), problems, settings)
    pieces = _pieces(names, problems, settings)
    computed = run_pieces(
        _compute,
        context,
        pieces,
        kept=kept,
        workers=workers,
        cluster=cluster,
        what=registered.name,
        wanted=verbose,
    )
    with threadpool_limits(1):
        return _result(registered, experiment, problems, settings, names, computed)


def _result(
    registered: Registered,
    experiment: Experiment,
    problems: list[Problem],
    settings: Settings,
    names: list[str],
    computed: Mapping[Piece, np.ndarray],
) -> Result:
    variants = tuple(getattr(registered.thing, "variants", ())) or ("",)
    traces: dict[tuple[str, int, int], Trace] = {}
    empty: dict[str, dict[str, dict[str, list[int]]]] = {name: {} for name in names}
    for s, name in enumerate(names):
        for p, problem in enumerate(problems):
            scores = np.stack([computed["cv", s, p, r] for r in range(settings.repeats)])
            for v, variant in enumerate(variants):
                own = scores[:, :, v] if problem.kind == "binary" else scores
                traces[name, p, v] = trace_of(problem, own)
                if problem.kind == "binary":
                    empty[name].setdefault(problem.name, {})[variant] = empty_models(own, problem)
    analysis = analyse(experiment.names, problems, traces, settings, variants)
    if experiment.kind == "binary":
        analysis.extra["empty_models"] = empty
    controls = {
        (names[piece[1]], *piece[2:], piece[0]): array
        for piece, array in computed.items()
        if piece[0] != "cv"
    }
    summary = summarise(
        registered,
        experiment,
        problems,
        settings,
        analysis,
        controls,
        versions(registered),
    )
    return Result(summary, analysis.rows, pack(experiment, problems, traces))


def _pieces(names: list[str], problems: list[Problem], settings: Settings) -> list[Piece]:
    """List what is to be computed; colour is a baseline itself, and has no others."""
    pieces: list[Piece] = []
    for s, name in enumerate(names):
        for p, problem in enumerate(problems):
            pieces += [("cv", s, p, r) for r in range(settings.repeats)]
            if name == COLOUR:
                continue
            if settings.permutations:
                pieces += [("permuted", s, p, j) for j in range(settings.permutations + 1)]
            if settings.leak_control and p == 0 and baselines.can_leak(problem):
                for kind in ("leak_grouped", "leak_ungrouped"):
                    pieces += [(kind, s, p, j) for j in range(baselines.LEAK_DRAWS)]
    return pieces


def _compute(context: tuple, piece: Piece) -> np.ndarray:
    """Compute one piece; what it draws at random depends on the piece and the seed alone."""
    probe, sets, problems, settings = context
    what, s, p, number = piece
    problem = problems[p]
    features = sets[s][problem.rows]
    if what == "cv":
        seed = fold_seed(settings.seed, number)
        return predict_repeat(probe, features, problem, problem.folds[number], seed)
    if what == "permuted":
        return baselines.permuted_statistic(
            probe, features, problem, number, grouped=settings.grouped, seed=settings.seed
        )
    grouped = what == "leak_grouped"
    return np.array(
        baselines.leak_statistic(
            probe, features, problem, number, grouped=grouped, seed=settings.seed
        )
    )


def _fingerprint(registered: Registered, experiment: Experiment, settings: Settings) -> str:
    """Return a name for all that decides what a piece holds, so that a run goes on with its own.

    How many repeats or permutations there are, and what is made of them, does not: an interrupted
    run may be given again with more of them, or another reference.
    """
    digest = hashlib.sha256()
    arrays = [experiment.keys, experiment.groups, experiment.values, *experiment.features.values()]
    if experiment.colour is not None:
        arrays.append(experiment.colour)
    for array in arrays:
        if not isinstance(array, np.ndarray):
            digest.update(array.sha256.encode())
            continue
        digest.update(str((array.dtype, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    about = {
        "settings": [settings.folds, settings.seed, settings.grouped],
        "sets": list(experiment.features),
        "names": experiment.names,
        "probe": [registered.name, registered.plugin, dict(registered.thing.settings)],
        "versions": versions(registered),
    }
    digest.update(json.dumps(about, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def versions(probe: Registered) -> dict[str, str]:
    """Return the versions that decide a result: of libraries, and of a probe's plug-in."""
    from importlib.metadata import PackageNotFoundError, version

    names = ("numpy", "scipy", "scikit-learn", "numba", "matplotlib")
    found = {"tiaft_plugin": __version__, "python": platform.python_version()}
    try:
        found |= {name: version(name) for name in (*names, *getattr(probe.thing, "libraries", ()))}
    except PackageNotFoundError as error:
        raise TiaftError(
            f"plug-in {probe.plugin}: the probe {probe.name} names a library that is not "
            f"installed, {error.name}"
        ) from error
    source = plugin_manager().sources.get(probe.plugin, "built in")
    return found if source == "built in" else found | {f"plug-in {probe.plugin}": source}
