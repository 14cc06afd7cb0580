"""tiaft's own commands, in the order of the work."""

from tiaft_plugin.hookspecs import hookimpl


@hookimpl
def register_commands(cli):
    """Add the built-in commands."""
    from tiaft_plugin.cli.cohort import cohort
    from tiaft_plugin.cli.demo import demo
    from tiaft_plugin.cli.doctor import doctor
    from tiaft_plugin.cli.export import export
    from tiaft_plugin.cli.extract import extract
    from tiaft_plugin.cli.features import features
    from tiaft_plugin.cli.finetune import finetune
    from tiaft_plugin.cli.models import models
    from tiaft_plugin.cli.plugins import plugins
    from tiaft_plugin.cli.predict import predict
    from tiaft_plugin.cli.probe import probe
    from tiaft_plugin.cli.qupath import qupath
    from tiaft_plugin.cli.reproduce import reproduce
    from tiaft_plugin.cli.verify import verify

    for command in (
        *(demo, finetune, models, extract, predict, cohort, verify, export, qupath, features),
        *(probe, reproduce, plugins, doctor),
    ):
        cli.add_command(command)
