"""What interpretability adds to tiaft: ``tiaft interpret``, and textures as concepts."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_commands(cli):
    """Add ``tiaft interpret``."""
    from tiaft_extensions.interpretability.cli import interpret

    cli.add_command(interpret)


@hookimpl
def register_concepts(register):
    """Add Haralick's texture measures."""
    from tiaft_extensions.interpretability.concepts.haralick import PROPERTIES, Texture

    for name in PROPERTIES:
        register(name, Texture(name))


@hookimpl
def measure_tiles(tiles, store):
    """Add the Grad-CAM++ scores that are kept beside a store."""
    from tiaft_extensions.interpretability.gradcam.scores import scores_of

    return scores_of(store, tiles.ids)
