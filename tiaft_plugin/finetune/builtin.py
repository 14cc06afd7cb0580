"""The two-stage finetuner and the augmentations, as a plug-in."""

from tiaft_plugin.hookspecs import hookimpl


class TwoStage:
    """The paper's two stages (section 3.2); torch is loaded when one runs."""

    inputs = frozenset({"tiles"})
    targets = frozenset({"classes", "multilabel"})

    def __call__(self, job):
        """Run a job: see ``tiaft_plugin.finetune.stages``."""
        from tiaft_plugin.finetune.stages import run_stages

        return run_stages(job)


@hookimpl
def register_finetuners(register):
    """Register ``two-stage``, the default."""
    register("two-stage", TwoStage())


@hookimpl
def register_augmentations(register):
    """Register the augmentations of ``tiaft_plugin.finetune.augment``."""
    from tiaft_plugin.finetune.augment import BUILT_IN

    for name, augment in BUILT_IN.items():
        register(name, augment)
