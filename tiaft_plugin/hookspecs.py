"""Every extension point of tiaft, one short function each.

A plug-in is a module or object with some of these functions, marked with
``tiaft_plugin.hookimpl`` and named in the entry-point group ``tiaft``. It may leave out any
argument that it does not use.
"""

from pluggy import HookimplMarker, HookspecMarker

hookspec = HookspecMarker("tiaft")
hookimpl = HookimplMarker("tiaft")


@hookspec
def register_models(register):
    """Add tile models: ``register(name, load, tile_size=…, mpp=…, classes=())``."""


@hookspec
def register_finetuners(register):
    """Add fine-tuners: ``register(name, finetuner)``."""


@hookspec
def register_probes(register):
    """Add downstream probes: ``register(name, probe)``."""


@hookspec
def register_sinks(register):
    """Add places that tile predictions go to: ``register(name, write, suffix=".ext")``."""


@hookspec
def register_commands(cli):
    """Add commands to ``tiaft``: `cli` is its click group."""


@hookspec
def stage_started(stage, network):
    """A stage of a fine-tuning begins: `stage` is its number, `network` may be looked at."""


@hookspec
def stage_ended(stage, network):
    """A stage of a fine-tuning has ended."""


@hookspec
def epoch_ended(stage, epoch, metrics):
    """An epoch has ended: `metrics` is its row of ``metrics.csv`` as a dict."""


@hookspec(firstresult=True)
def choose_optimizer(stage, parameters, lr):
    """Return a torch optimiser for a stage, or None to leave the choice; first result wins."""


@hookspec(firstresult=True)
def choose_augmentation(stage, tile_size):
    """Return a function from and to a uint8 (H, W, 3) array, or None; first result wins."""


@hookspec
def measure_tiles(slide, tiles):
    """Return measurements to add to tiles on their way to a sink: ``{name: (n,) floats}``."""
