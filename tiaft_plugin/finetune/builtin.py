"""The two-stage finetuner, as a plug-in."""

from tiaft_plugin.hookspecs import hookimpl


class TwoStage:
    """The paper's two stages (section 3.2); torch is loaded when one runs."""

    inputs = frozenset({"tiles"})
    targets = frozenset({"classes"})

    def __call__(self, job):
        """Run a job: see ``tiaft_plugin.finetune.two_stage``."""
        from tiaft_plugin.finetune.two_stage import run_two_stages

        return run_two_stages(job)


@hookimpl
def register_finetuners(register):
    """Register ``two-stage``, the default."""
    register("two-stage", TwoStage())
