"""The sinks that a run writes to: a file beside each store, or one place for all slides."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiaft_plugin.engine.jobs import SlideResult
from tiaft_plugin.engine.predictions import Sink, predictions_of
from tiaft_plugin.engine.store import note_sink, read_store
from tiaft_plugin.errors import TiaftError, reason
from tiaft_plugin.plugins import Registered, collect


@dataclass(frozen=True)
class Outlet:
    """A sink as a run uses it: a file of `suffix` a slide, or one `target` that a person named."""

    name: str
    write: Sink
    suffix: str = ""
    target: Path | None = None

    def path(self, store: Path) -> Path:
        """Return where the predictions of a store go."""
        return self.target or store.with_suffix(self.suffix)


def named_sinks(names: Iterable[str]) -> list[Outlet]:
    """Return registered sinks by name: ``geojson``, or ``qupath=PROJECT`` for those with a target.

    Raises TiaftError for unknown ones, clashing files, and a target that is missing or too many.
    """
    known = collect("register_sinks")
    outlets: list[Outlet] = []
    for asked in dict.fromkeys(names):
        name, given, target = asked.partition("=")
        if name not in known:
            comma = any(outlet.target for outlet in outlets)
            hint = " (a comma ends the path before it)" if comma else ""
            raise TiaftError(f"no sink {asked!r}{hint}: there are {', '.join(sorted(known))}")
        outlets.append(_outlet(known[name], target if given else None))
    _refuse_clashes(outlets)
    return outlets


def write_sinks(
    result: SlideResult, outlets: Sequence[Outlet], inputs: set[Path], *, overwrite: bool
) -> SlideResult:
    """Write a slide's predictions to each outlet; return the result, failed if one was not written.

    A file that stands there from the same store is left alone; a target takes each run's anew.
    """
    if result.store is None or not outlets:
        return result
    try:
        store = read_store(result.store)
        predictions = predictions_of(store, result.slide)
        for outlet in outlets:
            path = outlet.path(result.store)
            if outlet.target is None:
                _refuse_inputs(path, inputs)
                if path.exists() and not overwrite:
                    if outlet.name in store.facts["sinks"]:
                        continue
                    raise TiaftError(f"{path} exists already: move it, or pass --overwrite")
            try:
                outlet.write(predictions, path)
            except Exception as error:  # plug-ins raise whatever they like
                raise TiaftError(f"{outlet.name} cannot be written: {reason(error)}") from error
            note_sink(result.store, outlet.name)
    except Exception as error:
        return replace(result, status="failed", reason=reason(error))
    return result


def _outlet(sink: Registered, target: str | None) -> Outlet:
    suffix, wanted = sink.options["suffix"], sink.options["target"]
    if wanted and not suffix:
        if not target:
            raise TiaftError(f"{sink.name} needs to know where: --to {sink.name}={wanted}")
        if hasattr(sink.thing, "check"):
            sink.thing.check(Path(target))
        return Outlet(sink.name, sink.thing, target=Path(target))
    if wanted or not re.fullmatch(r"(\.\w+)+", suffix):
        fault = "suffix and target" if wanted else f"no suffix: {suffix!r}"
        raise TiaftError(f"sink {sink.name} of plug-in {sink.plugin} has {fault}")
    if target is not None:
        raise TiaftError(f"{sink.name} writes a file beside each store: ask for it as {sink.name}")
    return Outlet(sink.name, sink.thing, suffix=suffix)


def _refuse_clashes(outlets: Sequence[Outlet]) -> None:
    by_suffix: dict[str, str] = {".zarr": "the store itself", ".csv": "the summary"}
    for outlet in outlets:
        if outlet.target is not None:
            continue
        other = by_suffix.setdefault(outlet.suffix, outlet.name)
        if other != outlet.name and other != "the summary":
            raise TiaftError(
                f"{outlet.name} and {other} both write {outlet.suffix}: ask for one of them"
            )


def _refuse_inputs(path: Path, inputs: set[Path]) -> None:
    """Raise TiaftError if a sink would write over what the run was given."""
    if any(path.exists() and other.exists() and path.samefile(other) for other in inputs):
        raise TiaftError(f"{path} was given as slide or mask: choose another --out")
