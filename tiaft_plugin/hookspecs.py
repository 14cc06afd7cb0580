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
    """Add tile models: ``register(name, load, tile_size=…, mpp=…, classes=(), multilabel=False)``.

    ``load()`` returns a torch module in eval mode, called with uint8 tiles (N, H, W, 3) on its
    device: logits (N, C) where `classes` are named, features (N, D) where not; with `multilabel` a
    tile has any number of the classes. `tile_size` is in pixels, `mpp` in µm per pixel.
    ``tiaft_plugin.testing.check_model`` says what else it promises.
    """


@hookspec
def register_finetuners(register):
    """Add fine-tuners: ``register(name, finetuner)``; see ``tiaft_plugin.finetune.interface``."""


@hookspec
def register_augmentations(register):
    """Add augmentations: ``register(name, augment)``, for ``tiaft finetune --augment NAME``.

    ``augment(tile, rng)`` returns a tile's array (H, W, 3), uint8, changed; `rng` is a numpy
    Generator that seed, stage, epoch and tile alone decide. It goes to other processes: a function
    or object of a module.
    """


@hookspec
def register_probes(register):
    """Add downstream probes: ``register(name, probe)``; see ``tiaft_plugin.probes.interface``.

    Each is a command, ``tiaft probe NAME``; the protocol around it is the same for all.
    ``tiaft_plugin.testing.check_probe`` says what it promises.
    """


@hookspec
def register_aggregators(register):
    """Add ways from tiles to a patient: ``register(name, aggregate)``.

    ``aggregate(features, slides)`` gets all tiles of a patient, (n, D) float32, and the slide of
    each, (n,) text; it returns (E,) numbers, as many for every patient. With ``target="WHAT"`` it
    is made: ``aggregate(path)`` returns it, for what a person named (``--aggregate name=WHAT``).
    One with a method ``check(models)`` is asked before: what it was not made for, it refuses.
    """


@hookspec
def register_concepts(register):
    """Add concepts: ``register(name, measure)``, for ``tiaft interpret concepts --concepts NAME``.

    ``measure(tile)`` returns one number for a uint8 tile (H, W, 3), or NaN where it has none.
    """


@hookspec
def register_sinks(register):
    """Add places that tile predictions go to: ``register(name, write, suffix=".ext")``.

    ``write(predictions, path)`` gets ``tiaft_plugin.engine.predictions.TilePredictions`` and a file
    to write, one a slide. With ``target="WHAT"`` instead of a suffix, `path` is the one place that
    a person named for all slides (``--to name=WHAT``).
    """


@hookspec
def register_commands(cli):
    """Add commands to ``tiaft``: ``cli.add_command(command)``, each a click command."""


@hookspec
def stage_started(stage, network):
    """A stage of a fine-tuning begins: `stage` is its number, `network` may be looked at."""


@hookspec
def stage_ended(stage, network):
    """A stage of a fine-tuning has ended."""


@hookspec
def epoch_ended(stage, epoch, metrics):
    """An epoch has ended: `metrics` holds its rows of ``metrics.csv``, as dicts by split.

    The splits are ``train`` and, where tiles are held out, ``val``.
    """


@hookspec(firstresult=True)
def choose_optimizer(stage, parameters, lr, steps):
    """Return a torch optimiser for a stage, or None to leave the choice; first result wins.

    Or a pair, optimiser and scheduler; this one steps once a training step, of which the stage
    has `steps`.
    """


@hookspec(firstresult=True)
def choose_augmentation(stage, tile_size):
    """Return ``augment(tile, rng)``, from and to a uint8 (H, W, 3) array, or None; first wins.

    `rng` is a numpy Generator that seed, stage, epoch and tile alone decide. It comes before the
    augmentations that were asked for by name.
    """


@hookspec
def measure_tiles(slide, tiles, store):
    """Return measurements to add to tiles on their way to a sink: ``{name: (n,) floats}``.

    `store` is the path of the store they come from.
    """


@hookspec(firstresult=True)
def create_backbone(name, tile_size, args):
    """Return a backbone that timm does not have, with random weights, or None; first wins.

    It is a torch module that makes features (N, ``num_features``) of normalised tiles
    (N, 3, H, W). A model file says its `name` and `args`, and both must always give the same
    network. ``NAME:CHANGE`` takes mean, std and weights, by their names, of backbone NAME.
    """
