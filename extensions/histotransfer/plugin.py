"""What histotransfer adds to tiaft: its commands, the probes of bags, and a finetuner."""

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


@hookimpl
def register_aggregators(register):
    """Register pooling by the attention that was learnt on another cohort."""
    from tiaft_extensions.histotransfer.pooling import pooling_by

    register("attention", pooling_by, target="RUN")


@hookimpl
def measure_tiles(tiles, store):
    """Add the attention that is kept beside a store."""
    from tiaft_extensions.histotransfer.maps.scores import ATTENTION
    from tiaft_extensions.interpretability.gradcam.scores import scores_of

    return scores_of(store, tiles.ids, ATTENTION)


@hookimpl
def register_finetuners(register):
    """Register top-k fine-tuning."""
    from tiaft_extensions.histotransfer.topk.finetuner import TopK

    register("top-k", TopK())
