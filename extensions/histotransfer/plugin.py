"""What histotransfer adds to tiaft: ``tiaft histotransfer``, and the probes of bags."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_commands(cli):
    """Add ``tiaft histotransfer``."""
    from tiaft_extensions.histotransfer.cli import histotransfer

    cli.add_command(histotransfer)


@hookimpl
def register_probes(register):
    """Register attention pooling: the paper's, and gated."""
    from tiaft_extensions.histotransfer.mil import Mil

    register("mil", Mil())
    register("mil-gated", Mil(gated=True))
