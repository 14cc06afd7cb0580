"""The one place that touches TIAToolbox: its engines learn our names, without a fork.

TIAToolbox builds a named model from three things: its table of names, a class found under
``tiatoolbox.models.architecture``, and weights that it fetches and unpickles itself. Each has a
door: the table becomes a dict that looks names up lazily; an import finder serves a module there
that re-exports our classes; and the two functions that fetch and load weights are wrapped, for
our names only, as soon as TIAToolbox's modules are imported. Nothing heavy is imported here.
"""

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from tiaft_plugin.errors import TiaftError, reason

SERVED = "tiatoolbox.models.architecture.tiaft"
_CLOSED: list[str] = []  # doors that are not where they were


def install() -> None:
    """Give TIAToolbox our names. Calling it again changes nothing."""
    from tiaft_plugin.zoo.promises import ALIASES, PROMISES

    try:
        from tiatoolbox import rcParam

        names = rcParam["pretrained_model_info"]
    except (ImportError, KeyError) as error:
        return _closed("its table of names", error)
    if isinstance(names, NameTable):
        return
    table = NameTable(names)
    rcParam["pretrained_model_info"] = table
    table.listed = (*PROMISES, *ALIASES)
    sys.meta_path.insert(0, Finder())
    for name, change in AFTER_IMPORT.items():
        if name in sys.modules:
            _try(change, sys.modules[name])


def open_doors() -> list[str]:
    """Return what keeps TIAToolbox from knowing our names: nothing where all is well.

    Loads TIAToolbox's models, and torch with them.
    """
    for name in (*AFTER_IMPORT, SERVED):
        try:
            module = import_module(name)
            if name == "tiatoolbox.models.architecture":
                _check_used(module.get_pretrained_model, module)
        except Exception as error:  # any error of any version's import
            _closed(name, error)
    return list(_CLOSED)


def owner_of(name: str) -> str:
    """Return whose model a name is: TIAToolbox, timm, torchvision, or nobody's (empty).

    Loads all three.
    """
    import timm
    import torchvision
    from tiatoolbox import rcParam
    from tiatoolbox.models.architecture.vanilla import timm_arch_dict, torch_cnn_backbone_dict

    if dict.__contains__(rcParam["pretrained_model_info"], name) or name in timm_arch_dict:
        return "TIAToolbox"
    if timm.is_model(name):
        return "timm"
    if name in torch_cnn_backbone_dict or name in torchvision.models.list_models():
        return "torchvision"
    return ""


class NameTable(dict):
    """TIAToolbox's table of models; names that it lacks are looked up with tiaft when asked for.

    A plug-in's or the user's names cost nothing until then. Iterating gives TIAToolbox's and
    tiaft's own. A damaged model is in the table, and says what is wrong with it when it is got.
    """

    listed: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        try:
            return isinstance(name, str) and _entry(name) is not None
        except TiaftError:
            return True

    def __missing__(self, name: str) -> dict:
        entry = _entry(name)
        if entry is None:
            raise KeyError(name)
        return entry

    def get(self, name: str, default: Any = None) -> Any:
        """Return a model's entry, or `default`."""
        return self[name] if name in self else default  # noqa: SIM401 - that is this method

    def __iter__(self):
        yield from super().__iter__()
        yield from (name for name in self.listed if not super(NameTable, self).__contains__(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def keys(self):
        """All names of TIAToolbox and tiaft."""
        return list(self)

    def items(self):
        """All names with their entries; damaged models are noted on stderr and left out."""
        return [(name, entry) for name in self if (entry := _or_note(self, name)) is not None]

    def values(self):
        """All entries, as in `items`."""
        return [entry for _, entry in self.items()]


def _or_note(table: NameTable, name: str) -> dict | None:
    from tiaft_plugin.zoo.names import note_once

    try:
        return table[name]
    except TiaftError as error:
        note_once(str(error))
        return None


def _entry(name: str) -> dict | None:
    """Return a name's entry in the form of TIAToolbox's ``pretrained_model.yaml``."""
    from tiaft_plugin.zoo.names import find

    model = find(name)
    if model is None:
        return None
    kind = "TileClassifier" if model.view == "classes" else "TileFeatures"
    side = [model.tile_size, model.tile_size]
    return {
        "architecture": {"class": f"tiaft.{kind}", "kwargs": {"name": name}},
        "ioconfig": {
            "class": "io_config.IOPatchPredictorConfig",
            "kwargs": {
                "patch_input_shape": side,
                "stride_shape": side,
                "input_resolutions": [{"resolution": model.mpp, "units": "mpp"}],
            },
        },
    }


class Finder(MetaPathFinder):
    """Serves our module inside TIAToolbox, and changes TIAToolbox's own as they are imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module that is ours or to be changed, else None."""
        if fullname == SERVED:
            return spec_from_loader(fullname, _Served())
        if fullname not in AFTER_IMPORT:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, AFTER_IMPORT[fullname])
        return spec


class _Served(Loader):
    """Fills the served module with re-exports: the classes' home is tiaft_plugin.zoo.models."""

    def exec_module(self, module: ModuleType) -> None:
        from tiaft_plugin.zoo import models

        vars(module).update(TileClassifier=models.TileClassifier, TileFeatures=models.TileFeatures)


def _run_after(loader: Any, change: Callable[[ModuleType], None]) -> None:
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        original(module)
        _try(change, module)

    loader.exec_module = exec_module


def _try(change: Callable[[ModuleType], None], module: ModuleType) -> None:
    try:
        change(module)
    except Exception as error:  # TIAToolbox goes on without our names
        _closed(module.__name__, error)


def _closed(what: str, error: Exception) -> None:
    """Say, once, that a door into TIAToolbox is not where it was."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = f"TIAToolbox {version('tiatoolbox')}"
    except PackageNotFoundError:
        found = "this TIAToolbox"
    problem = f"tiaft's model names do not work with {found}: {what}: {reason(error)}"
    if problem not in _CLOSED:
        _CLOSED.append(problem)
        print(f"tiaft: {problem}", file=sys.stderr)


def _check_used(get_pretrained_model: Any, architecture: ModuleType) -> None:
    """Raise TiaftError unless TIAToolbox still builds models through what we have wrapped."""
    used = inspect.unwrap(get_pretrained_model).__code__.co_names
    for name in ("PRETRAINED_INFO", "fetch_pretrained_weights", "load_torch_model"):
        if name not in used or not hasattr(architecture, name):
            raise TiaftError(f"get_pretrained_model does not use {name}")


def _wrap_weights(architecture: Any) -> None:
    """Let ``fetch_pretrained_weights`` and ``load_torch_model`` know our names and classes."""
    from tiatoolbox import rcParam

    fetch, load = architecture.fetch_pretrained_weights, architecture.load_torch_model
    architecture.PRETRAINED_INFO = rcParam["pretrained_model_info"]

    @wraps(fetch)
    def fetch_pretrained_weights(model_name: str, *args: Any, **kwargs: Any) -> str:
        if dict.__contains__(architecture.PRETRAINED_INFO, model_name):
            return fetch(model_name, *args, **kwargs)
        from tiaft_plugin.zoo.load import no_weights
        from tiaft_plugin.zoo.names import find

        model = find(model_name)
        if model is None:
            return fetch(model_name, *args, **kwargs)  # its error, for a name nobody knows
        if model.file is None:
            return ""  # a plug-in brings its own weights
        if not model.file.is_file():
            raise no_weights(model.base)
        return str(model.file)

    @wraps(load)
    def load_torch_model(model: Any, weights: Any) -> Any:
        from tiaft_plugin.zoo.models import TileModel

        if not isinstance(model, TileModel):
            return load(model, weights)
        own = str(weights) == str(model.named.file or "")
        return model.load(None if own else weights)

    architecture.fetch_pretrained_weights = fetch_pretrained_weights
    architecture.load_torch_model = load_torch_model


def _wrap_patch_predictor(module: Any) -> None:
    """Let a PatchPredictor refuse a feature model when it is made, not after hours of work."""
    original = module.PatchPredictor.__init__

    @wraps(original)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor

        model = getattr(self.model, "module", self.model)
        refuse = getattr(model, "refuse_as_classifier", None)
        if refuse is not None and not isinstance(self, DeepFeatureExtractor):
            refuse()

    module.PatchPredictor.__init__ = make


AFTER_IMPORT: dict[str, Callable[[ModuleType], None]] = {
    "tiatoolbox.models.architecture": _wrap_weights,
    "tiatoolbox.models.engine.patch_predictor": _wrap_patch_predictor,
}
