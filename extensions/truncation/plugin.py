"""What truncation adds to tiaft: cut backbones, the CBR family, ``tiaft truncate``."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_commands(cli):
    """Add ``tiaft truncate``."""
    from tiaft_extensions.truncation.cli import truncate

    cli.add_command(truncate)


@hookimpl
def create_backbone(name, tile_size, args):
    """Build ``NAME:CUT``, and the CBR family."""
    whole, colon, cut = name.partition(":")
    if cut.startswith("tf-"):
        from tiaft_extensions.truncation.backbones.slim import create_slim

        return create_slim(whole, cut.removeprefix("tf-"), tile_size, args)
    if colon:
        from tiaft_extensions.truncation.backbones.truncated import create_truncated

        return create_truncated(whole, cut, tile_size, args)
    if name.startswith("cbr_"):
        from tiaft_extensions.truncation.backbones.cbr import create_cbr

        return create_cbr(name, args)
    return None
