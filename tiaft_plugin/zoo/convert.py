"""Import other people's weights into model files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.network import Network, reorder_classes, save_model


def convert_keras(
    source: Path,
    file: Path,
    *,
    classes: Sequence[str] = (),
    tile_size: int = 224,
    mpp: float = 0.5,
    licence: str = "",
    overwrite: bool = False,
) -> Network:
    """Write the Keras Xception in `source` to a model file; `classes` in the order of its outputs.

    The nine kather100k classes are put into TIAToolbox's order. Raises TiaftError.
    """
    from tiaft_plugin.network.keras import read_keras

    if source.suffix.lower() not in (".h5", ".hdf5", ".keras"):
        raise TiaftError(
            f"{source} is no Keras file (.h5, .weights.h5, .keras): a .pth or .safetensors file "
            f"of a backbone goes into `tiaft models create FILE --init {source.name}`"
        )
    if not overwrite:
        refuse_existing(file)
    net = read_keras(source, classes, tile_size=tile_size, mpp=mpp)
    net.card = replace(net.card, licence=licence)
    if sorted(net.card.classes) == sorted(KATHER100K):
        reorder_classes(net, KATHER100K)
    save_model(net, file, overwrite=overwrite)
    return net
