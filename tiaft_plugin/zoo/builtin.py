"""tiaft's own model names, as a plug-in: the paper's Xception in its three readings."""

from functools import partial

from tiaft_plugin.hookspecs import hookimpl
from tiaft_plugin.zoo.promises import PROMISES


@hookimpl
def register_models(register):
    """Register the names; their weights are files in the user's model folder."""
    for promise in PROMISES.values():
        register(
            promise.name,
            partial(_load, promise.name),
            tile_size=promise.tile_size,
            mpp=promise.mpp,
            classes=promise.classes,
        )


def _load(name: str):
    from tiaft_plugin.zoo.folder import file_of
    from tiaft_plugin.zoo.load import load_file

    return load_file(name, file_of(name))
