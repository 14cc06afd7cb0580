"""Which tiles a fine-tuning trains on, which choose an epoch, and which only test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.known import nct_layout
from tiaft_plugin.tiles.listing import MANIFEST
from tiaft_plugin.tiles.split import refuse_shared_groups, split_by_groups, split_share
from tiaft_plugin.tiles.tileset import TileSet, read_tileset

SHARE = 0.2  # of the tiles, held out where nothing says which


@dataclass(frozen=True)
class Sets:
    """The tiles of a run: trained on, measured after each epoch, measured at the end only."""

    train: TileSet
    val: TileSet | None = None
    test: TileSet | None = None

    def named(self) -> dict[str, TileSet]:
        """Return the sets that there are, by the names that reports give them."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {name: tiles for name, tiles in every.items() if tiles is not None}


@dataclass(frozen=True)
class Chosen(Sets):
    """Sets that were read: `notes` are warnings about how, `lines` tell it, for people."""

    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()


def read_tiles(
    path: Path | str,
    *,
    val: Path | None = None,
    val_groups: Sequence[str] = (),
    val_share: float | None = None,
    test: Path | None = None,
    test_groups: Sequence[str] = (),
    needs_val: bool = False,
    mpp: float | None = None,
    multilabel: bool = False,
    seed: int = 0,
) -> Chosen:
    """Read the tiles to train on, and those held out: other sets, or groups or a share of `path`.

    `val_share` None holds a fifth out for val where nothing else is held out, or training
    `needs_val`; 0 holds none out. `mpp` (µm/px) holds for all sets. A folder of NCT-CRC-HE-100K
    and CRC-VAL-HE-7K trains on the one and tests on the other. Raises TiaftError where sets do not
    fit, or a slide or patient would stand in two.
    """
    _refuse_both(val, val_groups, test, test_groups, val_share)
    path, test, lines = _unfolded(Path(path), val, test, test_groups)
    if val_share is None:
        val_share = 0.0 if (test or test_groups) and not needs_val else SHARE
    share = 0.0 if val or val_groups else val_share
    train = read_tileset(path, mpp=mpp, multilabel=multilabel)
    sets: dict[str, TileSet] = {}
    notes: list[str] = []
    for name, folder, groups in (("test", test, test_groups), ("val", val, val_groups)):
        if groups:
            train, sets[name] = split_by_groups(train, groups)
        elif folder is not None:
            sets[name] = read_tileset(folder, mpp=mpp, classes=train.classes, multilabel=multilabel)
    if share:
        whole = len(train)
        train, sets["val"], notes = split_share(train, share, seed)
        lines.append(
            f"val: {len(sets['val'])} of {whole} tiles are held out of training "
            "(--val-share 0 trains on all)"
        )
    chosen = Chosen(train, sets.get("val"), sets.get("test"), tuple(notes))
    refuse_shared_groups(chosen.named())
    return replace(chosen, lines=(*lines, _told(chosen.named())))


def _refuse_both(
    val: Path | None,
    val_groups: Sequence[str],
    test: Path | None,
    test_groups: Sequence[str],
    val_share: float | None,
) -> None:
    if (val is not None and val_groups) or (test is not None and test_groups):
        raise TiaftError("hold out either another tile set or groups of this one, not both")
    both = sorted(set(val_groups) & set(test_groups))
    if both:
        raise TiaftError(f"{', '.join(both)}: in --val-groups and in --test-groups; one of them")
    if val_share is not None and not 0 <= val_share < 1:
        raise TiaftError(f"val_share is {val_share:g}: from 0 to less than 1")
    if val_share and (val is not None or val_groups):
        raise TiaftError("--val and --val-groups say what is held out: leave --val-share out")


def _unfolded(
    path: Path, val: Path | None, test: Path | None, test_groups: Sequence[str]
) -> tuple[Path, Path | None, list[str]]:
    """Return the tiles to train on and to test on in a folder that NCT-CRC-HE was unpacked to."""
    found = None if (path / MANIFEST).is_file() else nct_layout(path)
    if found is None:
        return path, test, []
    train, its_test = found
    taken = val is not None and its_test is not None and val.resolve() == its_test.resolve()
    if test is not None or test_groups or taken or its_test is None:
        return train, test, [f"{path}: training on {train.name}"]
    return train, its_test, [f"{path}: training on {train.name}, testing on {its_test.name}"]


def _told(sets: Mapping[str, TileSet]) -> str:
    told = []
    for name, tiles in sets.items():
        groups = len(tiles.group_names)
        s = "s" * (groups != 1)
        known = f" of {groups} slide{s} or patient{s}" if groups else ""
        told.append(f"{name} {len(tiles)} tiles{known}")
    kind = "labels" if sets["train"].multilabel else "classes"
    return f"{len(sets['train'].classes)} {kind}; {', '.join(told)}"
