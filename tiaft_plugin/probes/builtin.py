"""The paper's three experiments (section 3.3), as plug-ins."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_probes(register):
    """Register tissue, expression and mutation."""
    from tiaft_plugin.probes.expression import Expression
    from tiaft_plugin.probes.mutation import Mutation
    from tiaft_plugin.probes.tissue import Tissue

    register("tissue", Tissue())
    register("expression", Expression())
    register("mutation", Mutation())


@hookimpl
def register_aggregators(register):
    """Register the mean over all tiles of a patient, the paper's."""
    from tiaft_plugin.probes.aggregate import mean_of_tiles

    register("mean", mean_of_tiles)
