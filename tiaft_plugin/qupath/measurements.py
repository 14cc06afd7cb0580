"""What is measured of each tile, under the names that QuPath shows."""

from collections.abc import Sequence

import numpy as np

from tiaft_plugin.engine.predictions import TileBlock
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.qupath.names import measurement_name


def measurements_of(block: TileBlock, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """Return (n,) numbers by name: each class's probability, then what plug-ins add.

    Raises TiaftError where a plug-in uses a probability's name.
    """
    columns = zip(classes, block.probabilities.T, strict=True)
    values = {measurement_name(name): column for name, column in columns}
    for name, column in block.measurements.items():
        if name in values:
            raise TiaftError(f"a plug-in measures {name!r}, which is a probability's name already")
        values[name] = np.asarray(column)
    return values
