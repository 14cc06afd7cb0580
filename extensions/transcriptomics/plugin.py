"""What transcriptomics adds to tiaft: ``tiaft transcriptomics``, and two finetuners."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_commands(cli):
    """Add ``tiaft transcriptomics``."""
    from tiaft_extensions.transcriptomics.cli import transcriptomics

    cli.add_command(transcriptomics)


@hookimpl
def register_finetuners(register):
    """Register ``expression-direct`` and ``expression-contrastive``."""
    from tiaft_extensions.transcriptomics.tune.finetuner import OnExpression

    register("expression-direct", OnExpression("direct"))
    register("expression-contrastive", OnExpression("contrastive"))


@hookimpl(tryfirst=True)  # before whoever takes what stands after the colon for a cut
def create_backbone(name, tile_size, args):
    """Build ``NAME:projected``."""
    if not name.endswith(":projected"):
        return None
    from tiaft_extensions.transcriptomics.tune.projected import create_projected

    return create_projected(name, tile_size, args)
