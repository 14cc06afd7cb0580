"""Two networks over the same tiles: the CKA between any layers of the one and of the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tiaft_extensions.histotransfer.cka.hsic import FEWEST, ExactCKA, MinibatchCKA
from tiaft_extensions.histotransfer.cka.spread import groups_of, intervals
from tiaft_extensions.interpretability.pick import read_tiles
from tiaft_extensions.interpretability.subject import (
    NO_PRETRAINED,
    PRETRAINED,
    Subject,
    activations,
    default_layers,
    layers_of,
    variants,
)
from tiaft_extensions.interpretability.subject import layer as find_layer
from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.tileset import TileSet
from tiaft_plugin.tiles.words import some

LAYERS = 8  # by default: of ResNet18 its blocks
BATCH = 256  # tiles of a minibatch, at least
AT_ONCE = 64  # tiles in memory
MEMORY = 2 * 2**30  # bytes, of sums for the exact CKA
INTERVAL_MEMORY = 2**29  # bytes, of what intervals need
PLAIN, UNBIASED, MINIBATCH = "plain", "unbiased", "minibatch"
FEW_TILES = 0.05  # between the plain and the unbiased CKA: where it is more, it is said


@dataclass(frozen=True)
class Side:
    """A network and the layers of it that are compared, with the number of channels of each."""

    subject: Subject
    layers: tuple[str, ...]
    channels: tuple[int, ...]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.subject.name


@dataclass(frozen=True)
class Interval:
    """95 % intervals of the unbiased CKA, (A, B) each, and what they leave out, in words."""

    low: np.ndarray
    high: np.ndarray
    left_out: str


@dataclass(frozen=True)
class Comparison:
    """CKA between layers of `a` and of `b`: `cka` maps the kind of estimate to (A, B) float64.

    Kinds are ``plain`` and ``unbiased``, which are exact, and ``minibatch``. NaN where a layer
    gives the same for all tiles. `batches` hold that many tiles each; `notes` are for people.
    `interval` is None where it would take too much memory, or tiles are too few.
    """

    a: Side
    b: Side
    tiles: TileSet
    batches: tuple[int, ...]
    cka: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)
    interval: Interval | None = None

    @property
    def best(self) -> np.ndarray:
        """The estimate to look at: exact and unbiased, or else that of minibatches."""
        return self.cka.get(UNBIASED, self.cka[MINIBATCH])

    @property
    def common(self) -> list[tuple[str, int, int]]:
        """Layers that both have: name, and place among those of `a` and of `b`."""
        return [
            (name, place, self.b.layers.index(name))
            for place, name in enumerate(self.a.layers)
            if name in self.b.layers
        ]


def before(subject: Subject, pretrained: str, seed: int = 0) -> Subject:
    """Return the subject with the weights it had before fine-tuning: "imagenet", or a file's.

    Raises TiaftError where the file is not there or does not fit.
    """
    if pretrained == NO_PRETRAINED:
        raise TiaftError(f"--pretrained {pretrained}: compare with what? imagenet, or a file")
    wanted = None if pretrained == "imagenet" else pretrained
    found = variants(subject, wanted, seed, needed=True).get(PRETRAINED)
    if found is None:
        raise TiaftError(f"{subject.name} is a plug-in's: --pretrained needs a file of its weights")
    return replace(found, name=f"{subject.name}, pretrained", sha256="")


def side(subject: Subject, layers: Sequence[str] = ()) -> Side:
    """Return a network with layers to compare; none are up to eight ends of blocks.

    Raises TiaftError for a layer that it lacks, or that gives neither a map nor tokens.
    """
    subject = replace(subject, tokens=True)
    chosen = [name.removeprefix("part_a.") for name in layers] or default_layers(subject, LAYERS)
    known = layers_of(subject)
    for name in chosen:
        if name not in known:
            find_layer(subject, name)  # which says what there is
    names = tuple(dict.fromkeys(chosen))
    return Side(subject, names, tuple(known[name] for name in names))


def compare(
    a: Side,
    b: Side,
    tileset: TileSet,
    *,
    count: int | None = 1000,
    batch: int = BATCH,
    exact: bool = True,
    seed: int = 0,
) -> Comparison:
    """Return the CKA between the layers of two networks, from up to `count` random tiles.

    What a layer gives is averaged over its map (GAP), or over its tokens, class token and all.
    Tiles are read and forgotten; minibatches have `batch` of them or more. Without `exact` there
    are minibatches only, which need less memory, and no intervals. Raises TiaftError.
    """
    _refuse_too_large(a, b, exact)
    if a.name == b.name:
        a, b = (_called(each, f"{each.name} ({sign})") for each, sign in ((a, "A"), (b, "B")))
    rows = np.random.default_rng(seed).permutation(len(tileset))[:count]
    if len(rows) < FEWEST:
        raise TiaftError(f"{tileset.root} gives {len(rows)} tiles: CKA needs {FEWEST} or more")
    batches = np.array_split(rows, max(1, len(rows) // batch))
    shape = len(a.layers), len(b.layers)
    minibatch, whole = MinibatchCKA(*shape), ExactCKA(*shape) if exact else None
    groups = groups_of([tileset.groups[row] for row in rows], seed)
    enough = groups is not None and 8 * len(rows) ** 2 * sum(shape) <= INTERVAL_MEMORY
    kept: list[tuple[list[np.ndarray], list[np.ndarray]]] = []
    for of_a, of_b in _given(a, b, tileset, batches):
        minibatch.add(of_a, of_b)
        if whole:
            whole.add(of_a, of_b)
        if whole and enough:
            kept.append((of_a, of_b))
    cka = {PLAIN: whole.plain(), UNBIASED: whole.unbiased()} if whole else {}
    cka[MINIBATCH] = minibatch.cka()
    interval = _interval(kept, groups, cka[UNBIASED]) if kept and groups else None
    sizes = tuple(len(each) for each in batches)
    tiles = tileset.subset(np.sort(rows))
    found = Comparison(a, b, tiles, sizes, cka, interval=interval)
    found.notes.extend(_notes(found))
    return found


def _interval(
    kept: Sequence[tuple[list[np.ndarray], list[np.ndarray]]],
    groups: tuple[np.ndarray, str],
    cka: np.ndarray,
) -> Interval:
    of_a, of_b = zip(*kept, strict=True)
    low, high = intervals(_joined(of_a), _joined(of_b), groups[0])
    there = np.isfinite(cka)
    return Interval(np.where(there, low, np.nan), np.where(there, high, np.nan), groups[1])


def _refuse_too_large(a: Side, b: Side, exact: bool) -> None:
    squares = sum(n * n for each in (a, b) for n in each.channels)
    size = 8 * (sum(a.channels) * sum(b.channels) + squares)
    if exact and size > MEMORY:
        raise TiaftError(
            f"{len(a.layers)} and {len(b.layers)} layers with {sum(a.channels)} and "
            f"{sum(b.channels)} channels need {size / 2**30:.1f} GiB of memory to be compared "
            "exactly: name fewer (--layers), or pass --no-exact"
        )


def _called(each: Side, name: str) -> Side:
    return replace(each, subject=replace(each.subject, name=name))


def _given(
    a: Side, b: Side, tileset: TileSet, batches: Sequence[np.ndarray]
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Yield what the layers of both give for each batch, float32 (n, channels)."""
    with progress(sum(map(len, batches)), "Comparing layers") as bar:
        for batch in batches:
            parts = []
            for start in range(0, len(batch), AT_ONCE):
                rows = batch[start : start + AT_ONCE].tolist()
                parts.append(_given_for(a, b, tileset, rows))
                bar.update(len(rows))
            of_a, of_b = zip(*parts, strict=True)
            yield _joined(of_a), _joined(of_b)


def _given_for(
    a: Side, b: Side, tileset: TileSet, rows: list[int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    tiles = read_tiles(a.subject, tileset, rows)
    of_a = _features(a, tiles)
    if b.subject.tile_size != a.subject.tile_size:
        tiles = read_tiles(b.subject, tileset, rows)
    return of_a, _features(b, tiles)


def _joined(parts: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(layer) for layer in zip(*parts, strict=True)]


def _features(one: Side, tiles: np.ndarray) -> list[np.ndarray]:
    found = activations(one.subject, tiles, one.layers)
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise Stopped(f"{one.name} gives NaN or infinity at {name}")
    return [found[name] for name in one.layers]


def _notes(found: Comparison) -> Iterator[str]:
    """Yield what readers should know before they believe a number."""
    for one, axis in ((found.a, 1), (found.b, 0)):
        constant = np.isnan(found.best).all(axis=axis)
        names = [name for name, same in zip(one.layers, constant, strict=True) if same]
        if names and not np.isnan(found.best).all():
            yield f"{one.name} gives the same for every tile at {some(names)}: there is no CKA."
        mpp = one.subject.mpp
        if mpp and found.tiles.mpp and abs(found.tiles.mpp / mpp - 1) > 0.1:
            yield (
                f"The tiles have {found.tiles.mpp:g} µm/px; {one.name} is made for {mpp:g} µm/px."
            )
    if np.isnan(found.best).all():
        yield "There is no CKA at all: each layer of one model gives the same for every tile."
    elif PLAIN in found.cka:
        apart = float(np.nanmax(abs(found.cka[PLAIN] - found.cka[UNBIASED])))
        if apart > FEW_TILES:
            yield (
                f"The plain CKA is up to {apart:.2f} off the unbiased one: "
                f"{len(found.tiles)} tiles are few for so many channels."
            )
    blocks = found.interval is not None and found.interval.left_out.endswith("random tiles")
    if blocks and np.isfinite(found.best).any():
        yield (
            f"The tiles are of {_slides(found.tiles)}: intervals are of other tiles of the same "
            "slides, and say nothing of other slides."
        )


def _slides(tiles: TileSet) -> str:
    known = len(tiles.group_names)
    if not known or None in tiles.groups:
        return "unknown slides"
    return f"{known} slide{'s' * (known != 1)} or patient{'s' * (known != 1)}"
