"""Splits that keep a slide's or patient's tiles together."""

from collections.abc import Sequence

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.tiles.tileset import TileSet, refuse_rare_classes
from tiaft_plugin.tiles.words import some


def split_by_groups(tiles: TileSet, groups: Sequence[str]) -> tuple[TileSet, TileSet]:
    """Return the tiles to train on, and those of `groups` (slides or patients), held out.

    Raises TiaftError for an unknown group, for tiles without one, and where a class would have
    fewer than two tiles left to train on.
    """
    bare = [tiles.shown(f) for f, g in zip(tiles.files, tiles.groups, strict=True) if g is None]
    if bare:
        raise TiaftError(
            f"{tiles.root}: {len(bare)} of {len(tiles)} tiles have no group (slide or patient) to "
            f"split by: {some(bare)}: give each one in manifest.csv"
        )
    unknown = sorted(set(groups) - set(tiles.group_names))
    if unknown or not groups:
        raise TiaftError(
            f"{tiles.root} has no group {some(unknown) or 'to hold out'}; "
            f"its groups are {some(tiles.group_names, 20)}"
        )
    held_out = {index for index, group in enumerate(tiles.groups) if group in set(groups)}
    train = tiles.subset(index for index in range(len(tiles)) if index not in held_out)
    refuse_rare_classes(train)
    return train, tiles.subset(sorted(held_out))
