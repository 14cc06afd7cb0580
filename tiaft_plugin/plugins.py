"""The plug-in manager: which plug-ins there are, and what each of them registers."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import pluggy

from tiaft_plugin import hookspecs
from tiaft_plugin.errors import TiaftError

# tiaft's own parts are plug-ins like any other. These modules import nothing heavy.
BUILT_INS = (
    "tiaft_plugin.zoo.builtin",
    "tiaft_plugin.finetune.builtin",
    "tiaft_plugin.engine.builtin",
    "tiaft_plugin.qupath.builtin",
    "tiaft_plugin.cli.builtin",
)


@dataclass(frozen=True)
class Registered:
    """One thing that a plug-in registered: what it is, its options, and whose it is."""

    name: str
    thing: Any
    options: dict
    plugin: str


@cache
def plugin_manager() -> pluggy.PluginManager:
    """Return the manager with all plug-ins loaded: built-ins first, then installed ones.

    ``TIAFT_DISABLE_PLUGINS=a,b`` leaves some out; ``TIAFT_TRACE_PLUGINS=1`` prints each call. An
    installed plug-in that cannot be imported is named on stderr and left out.
    """
    manager = pluggy.PluginManager("tiaft")
    manager.add_hookspecs(hookspecs)
    for name in _disabled():
        manager.set_blocked(name)
    for module in BUILT_INS:
        if not manager.is_blocked(_short(module)):
            manager.register(import_module(module), name=_short(module))
    for entry in entry_points(group="tiaft"):
        if not manager.is_blocked(entry.name):
            _load(manager, entry)
    if os.environ.get("TIAFT_TRACE_PLUGINS", "0") not in ("", "0"):
        manager.add_hookcall_monitoring(_trace, _trace_result)
    return manager


def collect(hook: str) -> dict[str, Registered]:
    """Call a ``register_…`` hook of every plug-in; return what was registered, by name.

    Raises TiaftError where two plug-ins take one name, or a plug-in fails.
    """
    manager, found = plugin_manager(), {}
    for plugin_name, plugin in manager.list_name_plugin():
        if plugin is None:
            continue
        others = [other for other in manager.get_plugins() if other is not plugin]
        caller = manager.subset_hook_caller(hook, others)
        try:
            caller(register=_collector(found, plugin_name))
        except TiaftError:
            raise
        except Exception as error:
            raise TiaftError(
                f"plug-in {plugin_name} failed in {hook}: {error!r}; "
                f"TIAFT_DISABLE_PLUGINS={plugin_name} leaves it out"
            ) from error
    return found


def hooks_of(plugin: Any) -> list[str]:
    """Return the names of the hooks that a plug-in implements, in alphabetical order."""
    callers = plugin_manager().get_hookcallers(plugin) or []
    return sorted(caller.name for caller in callers)


def _collector(found: dict[str, Registered], plugin: str) -> Callable[..., None]:
    def register(name: str, thing: Any, **options: Any) -> None:
        if name in found:
            raise TiaftError(
                f"plug-ins {found[name].plugin} and {plugin} both register {name!r}; "
                f"TIAFT_DISABLE_PLUGINS={plugin} leaves the second out"
            )
        found[name] = Registered(name, thing, options, plugin)

    return register


def _load(manager: pluggy.PluginManager, entry: Any) -> None:
    try:
        manager.register(entry.load(), name=entry.name)
    except Exception as error:
        print(
            f"tiaft: plug-in {entry.name} ({entry.value}) cannot be loaded: {error!r}; "
            f"TIAFT_DISABLE_PLUGINS={entry.name} silences this",
            file=sys.stderr,
        )


def _short(module: str) -> str:
    """Name a built-in after its room: tiaft_plugin.zoo.builtin is "zoo"."""
    return module.split(".")[1]


def _disabled() -> list[str]:
    names = os.environ.get("TIAFT_DISABLE_PLUGINS", "").split(",")
    return [name.strip() for name in names if name.strip()]


def _trace(hook_name: str, hook_impls: list, kwargs: dict) -> None:
    plugins = ", ".join(impl.plugin_name for impl in hook_impls) or "nobody"
    print(f"tiaft hook {hook_name}({', '.join(kwargs)}) -> {plugins}", file=sys.stderr)


def _trace_result(outcome: Any, hook_name: str, hook_impls: list, kwargs: dict) -> None:
    if outcome.exception is not None:
        print(f"tiaft hook {hook_name} raised {outcome.exception!r}", file=sys.stderr)
