"""Hooks inside a run: a measurement for every tile, and an augmentation for fine-tuning."""

from tiaft_plugin import hookimpl


@hookimpl
def measure_tiles(tiles):  # a plug-in leaves out arguments that it does not use
    width, height = (tiles.bounds[:, 2:] - tiles.bounds[:, :2]).T
    return {"Area px^2": width * height}


@hookimpl
def choose_augmentation(stage):
    return turn if stage == 2 else None  # in stage 1 tiles stay as they are


def turn(tile, rng):
    """Turn a tile (H, W, 3) by quarters."""
    for _ in range(rng.integers(4)):
        tile = tile.transpose(1, 0, 2)[::-1]
    return tile.copy()
