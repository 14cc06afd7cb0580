"""Slides as points: embeddings of images or report texts, laid flat by t-SNE or UMAP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from tiaft_extensions.transcriptomics.evaluate.rows import pooled_stores, pooled_tiles
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_csv, write_folder_atomically
from tiaft_plugin.page import COLOURS, drawing, visible
from tiaft_plugin.probes.features import feature_table, read_tiles
from tiaft_plugin.probes.interface import FeatureTable
from tiaft_plugin.probes.labels import read_labels
from tiaft_plugin.probes.slides import lookup
from tiaft_plugin.probes.tables import KEYS, SUFFIXES, pick_key, read_table

PICTURE, COORDINATES = "embedding.png", "embedding.csv"
FEWEST = 5  # slides: fewer make no picture
PERPLEXITY, NEIGHBOURS = 30.0, 15  # scikit-learn's, and UMAP's
NO_LABEL = "no label"
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SLIDE = ("slide", *KEYS, "patient")


@dataclass(frozen=True)
class Flat:
    """Slides on the plane: `keys` (N,) text and `places` (N, 2) float64 of a table."""

    name: str
    keys: np.ndarray
    places: np.ndarray


def read_embeddings(path: Path, name: str) -> FeatureTable:
    """Return one row a slide of a table, an ``.npz``, or a folder of stores (the mean of tiles).

    A table has a column slide (or key, file, tile, id or patient), and numbers. Raises TiaftError.
    """
    if path.is_dir():
        return pooled_stores(path, name, "slide", {})
    if path.suffix.lower() == ".npz":
        found = read_tiles(path, name)
        return found if found.groups is None else pooled_tiles(found, path, "slide", {})
    if path.suffix.lower() not in SUFFIXES:
        raise TiaftError(f"{path} is no table of embeddings: .npz, {', '.join(SUFFIXES)} are read")
    key = ""

    def texts_of(columns: Sequence[str]) -> list[str]:
        nonlocal key
        key = pick_key(path, columns, _SLIDE)
        return [column for column in columns if column in (*_SLIDE, "group", "label")]

    table = read_table(path, texts_of)
    return feature_table(path, name, table.texts[key], table.numbers)


def flatten(
    tables: Sequence[FeatureTable],
    *,
    method: str = "tsne",
    together: bool = False,
    perplexity: float = PERPLEXITY,
    seed: int = 0,
) -> list[Flat]:
    """Lay each table flat, or all of them in one plane; the same numbers give the same places.

    Rows are brought to length 1 first, so that those are near that point the same way. Raises
    TiaftError for too few slides, and for tables of several widths that shall stand together.
    """
    widths = {table.name: table.values.shape[1] for table in tables}
    if together and len(set(widths.values())) > 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise TiaftError(f"--together needs embeddings of one space, these have widths {listed}")
    few = [table.name for table in tables if len(table.keys) < FEWEST]
    if few:
        raise TiaftError(f"{few[0]} has fewer than {FEWEST} slides: too few for a picture")
    groups = [list(tables)] if together else [[table] for table in tables]
    found = []
    for group in groups:
        rows = np.concatenate([table.values for table in group]).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths > 0, lengths, 1)
        if rows.shape[1] < 2 or (rows == rows[0]).all():  # t-SNE would crash
            raise TiaftError(
                f"{group[0].name} makes no picture: its slides have one number each, or differ in "
                "nothing but length"
            )
        places = _laid_flat(rows, method, perplexity, seed)
        ends = np.cumsum([len(table.keys) for table in group])[:-1]
        parts = np.split(places, ends)
        found += [Flat(t.name, t.keys, part) for t, part in zip(group, parts, strict=True)]
    return found


def _laid_flat(rows: np.ndarray, method: str, perplexity: float, seed: int) -> np.ndarray:
    """Return (N, 2) float64, by one thread: sums over several differ in their last bits."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        if method == "umap":
            return _umap()(
                n_neighbors=min(NEIGHBOURS, len(rows) - 1), random_state=seed, n_jobs=1
            ).fit_transform(rows).astype(np.float64)  # fmt: skip
        from sklearn.manifold import TSNE

        fitting = min(perplexity, (len(rows) - 1) / 3)
        model = TSNE(perplexity=fitting, init="pca", random_state=seed % 2**32)
        return model.fit_transform(rows).astype(np.float64)


def _umap() -> Any:
    try:
        from umap import UMAP
    except ImportError as error:
        raise TiaftError(
            "--method umap needs umap-learn: pip install umap-learn, or take --method tsne"
        ) from error
    return UMAP


def labels_by_slide(path: Path, column: str) -> dict[str, str]:
    """Return the label of each slide of a table. Raises TiaftError."""
    found = read_labels(path, "classes", key_columns=_SLIDE, label=column)
    named = dict(zip(found.keys.tolist(), found.values.tolist(), strict=True))
    return {PurePath(slide).stem: label for slide, label in named.items()} | named


def pairs_of(one: Flat, other: Flat) -> list[tuple[int, int]]:
    """Return the places of each slide that both have, by name or by name without suffix."""
    place = {key: number for number, key in enumerate(other.keys.tolist())}
    place |= {PurePath(key).stem: number for key, number in place.items()
              if PurePath(key).stem not in place}  # fmt: skip
    found = ((n, place.get(key, place.get(PurePath(key).stem)))
             for n, key in enumerate(one.keys.tolist()))  # fmt: skip
    return [(a, b) for a, b in found if b is not None]


def write_embedding(
    out: Path,
    flats: Sequence[Flat],
    labels: Mapping[str, str],
    *,
    together: bool = False,
    overwrite: bool = False,
) -> None:
    """Write the folder OUT, all of it or nothing: the picture, and the coordinates."""
    with write_folder_atomically(out, overwrite=overwrite) as folder:
        rows = (
            (flat.name, key, lookup(key, labels), f"{x:.6g}", f"{y:.6g}")
            for flat in flats
            for key, (x, y) in zip(flat.keys.tolist(), flat.places.tolist(), strict=True)
        )
        write_csv(folder / COORDINATES, ("set", "slide", "label", "x", "y"), rows)
        _draw(folder / PICTURE, flats, labels, together)


def _draw(path: Path, flats: Sequence[Flat], labels: Mapping[str, str], together: bool) -> None:
    """Draw a panel a table, or one for all; a line joins what is of one slide."""
    from matplotlib.figure import Figure

    with drawing():
        count = 1 if together else len(flats)
        figure = Figure(figsize=(5.5 * count, 5.9), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0].tolist() * (len(flats) // count)
        classes = [*sorted(set(labels.values()) - {""}), NO_LABEL]
        for number, (axes, flat) in enumerate(zip(panels, flats, strict=True)):
            of = np.array([lookup(key, labels) or NO_LABEL for key in flat.keys.tolist()])
            for place, name in enumerate(classes):
                x, y = flat.places[of == name].T
                axes.plot(x, y, linestyle="", markersize=5, zorder=2,
                          **_look(place, name, number if together else None))  # fmt: skip
            axes.set_title("" if together else visible(flat.name))
            axes.set_xticks([]), axes.set_yticks([])
        for number in range(1, len(flats)):
            _link(figure, panels, flats, number)
        known = all(lookup(key, labels) for flat in flats for key in flat.keys.tolist())
        _legend(figure, flats, classes[:-1] if known or len(classes) == 1 else classes, together)
        figure.savefig(path, dpi=150, metadata={"Software": None})


def _look(place: int, name: str, table: int | None) -> dict[str, Any]:
    """Return colour and sign of a class; where tables share a panel, the sign is the table's."""
    if name == NO_LABEL:
        return {"color": "#bbbbbb", "marker": _MARKERS[table or 0]}
    sign = place // len(COLOURS) if table is None else table
    return {"color": COLOURS[place % len(COLOURS)], "marker": _MARKERS[sign % len(_MARKERS)]}


def _link(figure: Any, panels: Sequence[Any], flats: Sequence[Flat], number: int) -> None:
    """Join each slide of a table with itself in the table before."""
    from matplotlib.patches import ConnectionPatch

    one, other = flats[number - 1], flats[number]
    for a, b in pairs_of(one, other):
        line = ConnectionPatch(
            tuple(one.places[a]), tuple(other.places[b]), "data", "data",
            axesA=panels[number - 1], axesB=panels[number],
            color="#999999", alpha=0.35, linewidth=0.6, zorder=1,
        )  # fmt: skip
        line.set_in_layout(False)
        figure.add_artist(line)


def _legend(figure: Any, flats: Sequence[Flat], classes: Sequence[str], together: bool) -> None:
    from matplotlib.lines import Line2D

    table = 0 if together else None
    handles = [Line2D([], [], linestyle="", label=visible(name), **_look(place, name, table))
               for place, name in enumerate(classes)]  # fmt: skip
    if together:
        handles += [Line2D([], [], linestyle="", color="#333333", marker=_MARKERS[n],
                           label=visible(flat.name)) for n, flat in enumerate(flats)]  # fmt: skip
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
