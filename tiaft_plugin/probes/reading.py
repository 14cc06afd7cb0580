"""From what a user names to feature tables and targets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tiaft_plugin.engine.jobs import read_patients as read_patient_table
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.probes.aggregate import find_aggregator, shown_name
from tiaft_plugin.probes.features import parse_feature_arguments, read_patients, read_tiles
from tiaft_plugin.probes.interface import FeatureTable, Probe, Targets
from tiaft_plugin.probes.labels import Transform, labels_of, read_labels
from tiaft_plugin.tiles.words import some


def read_inputs(
    probe: Probe,
    features: Sequence[str],
    labels: Path | None = None,
    *,
    patients: Path | None = None,
    aggregate: str = "mean",
    genes: Path | None = None,
    transform: Transform = "none",
) -> tuple[list[FeatureTable], Targets]:
    """Read feature sets ([NAME=]PATH) and a table of labels for a probe. Raises TiaftError."""
    named = parse_feature_arguments(features)
    own = getattr(probe, "read", None)
    if own is not None:
        return own(named, labels, read_patient_table(patients) if patients else {})
    chosen = named.items()
    if probe.unit == "tile":
        tables = [read_tiles(path, name) for name, path in chosen]
    else:
        known = read_patient_table(patients) if patients else None
        how = find_aggregator(aggregate)
        read = (read_patients(path, name, patients=known, aggregate=how) for name, path in chosen)
        tables = [replace(t, source={**t.source, "aggregate": shown_name(aggregate)}) for t in read]
    if labels is None:
        return tables, labels_of(_labelled(tables))
    wanted = read_names(genes) if genes else None
    return tables, read_labels(labels, probe.kind, names=wanted, transform=transform)


def read_names(path: Path) -> list[str]:
    """Read a list of genes, one a line; empty lines and what follows a # are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TiaftError(f"{path} cannot be read as a list of genes: {error}") from error
    names = [line.partition("#")[0].strip() for line in lines]
    if not any(names):
        raise TiaftError(f"{path} names no gene: one a line is expected")
    return list(dict.fromkeys(name for name in names if name))


def _labelled(tables: list[FeatureTable]) -> FeatureTable:
    """Return the first that brings labels. Raises TiaftError where another's are different."""
    labelled = [table for table in tables if table.labels is not None]
    if not labelled:
        raise TiaftError("the features bring no labels: pass --labels TABLE")
    first = labelled[0]
    known = _labels(first)
    for other in labelled[1:]:
        odd = [key for key, label in _labels(other).items() if known.get(key, label) != label]
        if odd:
            raise TiaftError(
                f"features {first.name} and {other.name} bring different labels of {len(odd)} "
                f"rows: {some(odd)}; pass the right ones, --labels TABLE"
            )
    return first


def _labels(table: FeatureTable) -> dict[str, str]:
    assert table.labels is not None
    pairs = zip(table.keys.tolist(), table.labels.tolist(), strict=True)
    return {key: label for key, label in pairs if label}
