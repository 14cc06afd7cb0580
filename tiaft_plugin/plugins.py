"""The plug-in manager: which plug-ins there are, and what each of them registers."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from inspect import Signature, signature
from typing import Any

import pluggy

from tiaft_plugin import hookspecs
from tiaft_plugin.errors import Stopped, TiaftError, reason

# tiaft's own parts are plug-ins like any other. These modules import nothing heavy.
BUILT_INS = (
    "tiaft_plugin.zoo.builtin",
    "tiaft_plugin.finetune.builtin",
    "tiaft_plugin.engine.builtin",
    "tiaft_plugin.probes.builtin",
    "tiaft_plugin.qupath.builtin",
    "tiaft_plugin.cli.builtin",
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")

# What `register` takes in each hook: whoever passes anything else hears of it at once.
REGISTER: dict[str, Signature] = {
    "register_models": signature(
        lambda name, load, *, tile_size, mpp, classes=(), multilabel=False: None
    ),
    "register_finetuners": signature(lambda name, finetuner: None),
    "register_augmentations": signature(lambda name, augment: None),
    "register_probes": signature(lambda name, probe: None),
    "register_aggregators": signature(lambda name, aggregate, *, target="": None),
    "register_concepts": signature(lambda name, measure: None),
    "register_sinks": signature(lambda name, write, *, suffix="", target="": None),
}

TAKEN = {("register_probes", "compare"): "`tiaft probe compare`"}
GIVE_FUNCTIONS = ("choose_augmentation",)  # hooks whose result is called later, when none is asked


@dataclass(frozen=True)
class Registered:
    """One thing that a plug-in registered: what it is, its options, and whose it is."""

    name: str
    thing: Any
    options: dict
    plugin: str


@dataclass(frozen=True)
class Owned:
    """A function that a plug-in gave for later, called as it is; where it fails, it says whose.

    `role` is what it is: "augmentation grain".
    """

    function: Callable[..., Any]
    plugin: str
    role: str

    def __str__(self) -> str:
        return f"{self.role} of plug-in {self.plugin}"

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function. Raises Stopped, which names the plug-in, where it fails."""
        try:
            return self.function(*arguments, **options)
        except TiaftError:
            raise
        except Exception as error:
            raise Stopped(f"{self} failed: {reason(error)}") from error


@dataclass(frozen=True)
class PluginInfo:
    """What ``tiaft plugins`` tells of a plug-in; `error` is empty where all is well."""

    name: str
    source: str  # "built in", or the distribution and its version
    hooks: list[str] = field(default_factory=list)
    registers: dict[str, list[str]] = field(default_factory=dict)  # hook: names
    error: str = ""


class Manager(pluggy.PluginManager):
    """pluggy's manager, which also remembers sources and what was left out, and why."""

    def __init__(self) -> None:
        super().__init__("tiaft")
        self.sources: dict[str, str] = {}
        self.broken: dict[str, str] = {}

    def register(self, plugin: Any, name: str | None = None) -> str | None:
        """Register a plug-in; an error in any of its hooks will name it."""
        name = super().register(plugin, name)
        for caller in self.get_hookcallers(plugin) or []:
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin:
                    impl.function = _named(impl, caller.name)  # type: ignore[misc]
        return name


@cache
def plugin_manager() -> Manager:
    """Return the manager with all plug-ins loaded: built-ins first, then installed ones by name.

    ``TIAFT_DISABLE_PLUGINS=a,b`` leaves some out, built-ins too; ``TIAFT_TRACE_PLUGINS=1`` prints
    each call. An installed plug-in that cannot be used is named on stderr and left out.
    """
    manager = Manager()
    manager.add_hookspecs(hookspecs)
    disabled = _disabled()
    for name in disabled:
        manager.set_blocked(name)
    for module in BUILT_INS:
        name = _short(module)
        manager.sources[name] = "built in"
        if name not in disabled:
            manager.register(import_module(module), name=name)
    for entry in sorted(entry_points(group="tiaft"), key=lambda entry: entry.name):
        if entry.name not in disabled:
            _load(manager, entry)
        manager.sources.setdefault(entry.name, _source(entry))
    for name in disabled:
        if name not in manager.sources:
            known = ", ".join(manager.sources)
            _note(f"TIAFT_DISABLE_PLUGINS names {name!r}, which is no plug-in (there are: {known})")
    if os.environ.get("TIAFT_TRACE_PLUGINS", "0") not in ("", "0"):
        manager.add_hookcall_monitoring(_trace, _trace_result)
    return manager


def call_hook(hook: str, **arguments: Any) -> Any:
    """Call a hook of all plug-ins; return the list of their results, None left out.

    Of a hook whose first result wins, return that, or None. Plug-ins that were registered later
    are asked first. Raises TiaftError, which names the plug-in, where one fails.
    """
    return getattr(plugin_manager().hook, hook)(**arguments)


def each_plugin(hook: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the name of each plug-in that has `hook`, and a function that calls it there alone.

    The function raises TiaftError, which names the plug-in, where the plug-in fails.
    """
    manager = plugin_manager()
    for name, plugin in manager.list_name_plugin():
        if plugin is None or hook not in hooks_of(plugin):
            continue
        others = [other for other in manager.get_plugins() if other is not plugin]
        yield name, manager.subset_hook_caller(hook, others)


def collect(
    hook: str, on_fault: Callable[[TiaftError], None] | None = None
) -> dict[str, Registered]:
    """Call a ``register_…`` hook of every plug-in; return what was registered, by name.

    Raises TiaftError where two plug-ins take one name, or a plug-in fails; `on_fault` gets it
    instead, and the rest of that plug-in's is left out.
    """
    found: dict[str, Registered] = {}
    for name, call in each_plugin(hook):
        try:
            call(register=_collector(found, hook, name))
        except TiaftError as fault:
            if on_fault is None:
                raise
            on_fault(fault)
    return found


def hooks_of(plugin: Any) -> list[str]:
    """Return the names of the hooks that a plug-in implements, in alphabetical order."""
    callers = plugin_manager().get_hookcallers(plugin) or []
    return sorted(caller.name for caller in callers)


def describe() -> list[PluginInfo]:
    """Return what is known of each plug-in, the blocked and the broken ones last."""
    manager = plugin_manager()
    infos = []
    for name, plugin in manager.list_name_plugin():
        if plugin is not None:
            registers, error = _registered_by(name)
            source = manager.sources[name]
            infos.append(PluginInfo(name, source, hooks_of(plugin), registers, error))
    for name, source in manager.sources.items():
        if manager.is_blocked(name):
            infos.append(PluginInfo(name, source, error="blocked by TIAFT_DISABLE_PLUGINS"))
        elif name in manager.broken:
            infos.append(PluginInfo(name, source, error=manager.broken[name]))
    return infos


def _registered_by(plugin: str) -> tuple[dict[str, list[str]], str]:
    import click

    registers: dict[str, list[str]] = {}
    error = ""
    for hook in (*REGISTER, "register_commands"):
        call = dict(each_plugin(hook)).get(plugin)
        if call is None:
            continue
        found: dict[str, Registered] = {}
        group = click.Group()
        try:
            if hook == "register_commands":
                call(cli=group)
            else:
                call(register=_collector(found, hook, plugin))
        except TiaftError as fault:
            error = str(fault)
        registers[hook] = [*found, *group.commands]
    return registers, error


def _collector(found: dict[str, Registered], hook: str, plugin: str) -> Callable[..., None]:
    def register(*args: Any, **options: Any) -> None:
        try:
            bound = REGISTER[hook].bind(*args, **options)
        except TypeError as error:
            takes = str(REGISTER[hook]).replace(", *,", ",")
            raise TiaftError(
                f"plug-in {plugin} calls register wrongly in {hook}: {error}; "
                f"it takes register{takes}"
            ) from error
        bound.apply_defaults()
        name, thing, *_ = bound.args
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise TiaftError(
                f"plug-in {plugin} registers the name {name!r} in {hook}: "
                "up to 64 letters, digits and _ . + - make a name, a letter or digit first"
            )
        if (hook, name) in TAKEN:
            raise TiaftError(
                f"plug-in {plugin} registers {name!r} in {hook}: {TAKEN[hook, name]} has this "
                f"name; TIAFT_DISABLE_PLUGINS={plugin} leaves it out"
            )
        if name in found:
            other = found[name].plugin
            raise TiaftError(
                f"plug-in {plugin} registers {name!r} twice"
                if other == plugin
                else f"plug-ins {other} and {plugin} both register {name!r}; "
                f"TIAFT_DISABLE_PLUGINS={plugin} leaves the second out"
            )
        found[name] = Registered(name, thing, bound.kwargs, plugin)

    return register


def _named(impl: Any, hook: str) -> Callable[..., Any]:
    """Return a plug-in's function for a hook, which names both in a TiaftError where it fails.

    So does what it returns, where that is a function.
    """
    function, plugin = impl.function, impl.plugin_name

    @contextmanager
    def naming() -> Iterator[None]:
        try:
            yield
        except TiaftError:
            raise
        except Exception as error:
            raise TiaftError(
                f"plug-in {plugin} failed in {hook}: {reason(error)}; "
                f"TIAFT_DISABLE_PLUGINS={plugin} leaves it out"
            ) from error

    def owned(result: Any) -> Any:
        if hook not in GIVE_FUNCTIONS or not callable(result) or isinstance(result, Owned):
            return result
        return Owned(result, plugin, f"{hook}'s function")

    def call(*arguments: Any) -> Any:
        with naming():
            return owned(function(*arguments))

    def wrap(*arguments: Any) -> Any:  # around the others' calls, which raise TiaftError only
        with naming():
            return owned((yield from function(*arguments)))

    return wrap if impl.wrapper or impl.hookwrapper else call


def _load(manager: Manager, entry: EntryPoint) -> None:
    """Register an installed plug-in; where that fails, note why and leave it out whole."""
    try:
        if entry.name in manager.sources:
            raise TiaftError(f"{manager.sources[entry.name]} has a plug-in of that name already")
        manager.register(entry.load(), name=entry.name)
        _check_hooks(manager, entry.name)
    except (Exception, SystemExit) as error:  # whatever its import does, tiaft goes on
        if manager.get_plugin(entry.name) and entry.name not in manager.sources:
            manager.unregister(name=entry.name)
        manager.broken[entry.name] = _reason(error)
        _note(
            f"plug-in {entry.name} ({entry.value}) is left out: {_reason(error)}; "
            f"TIAFT_DISABLE_PLUGINS={entry.name} silences this"
        )


def _check_hooks(manager: Manager, name: str) -> None:
    """Raise TiaftError where a plug-in has no hook at all, or one that tiaft does not know."""
    known = [hook for hook in vars(hookspecs) if hasattr(getattr(hookspecs, hook), "tiaft_spec")]
    callers = manager.get_hookcallers(manager.get_plugin(name)) or []
    if not callers:
        raise TiaftError("it has no function marked with tiaft_plugin.hookimpl")
    for caller in callers:
        optional = all(impl.optionalhook for impl in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            close = get_close_matches(caller.name, known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise TiaftError(f"{caller.name} is no hook of tiaft{hint}")


def _reason(error: BaseException) -> str:
    if isinstance(error, pluggy.PluginValidationError):  # several lines, the last says what
        return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return reason(error)


def _source(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _short(module: str) -> str:
    """Name a built-in after its room: tiaft_plugin.zoo.builtin is "zoo"."""
    return module.split(".")[1]


def _disabled() -> list[str]:
    names = os.environ.get("TIAFT_DISABLE_PLUGINS", "").split(",")
    return [name.strip() for name in names if name.strip()]


def _note(text: str) -> None:
    print(f"tiaft: {text}", file=sys.stderr)


def _trace(hook_name: str, hook_impls: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    plugins = ", ".join(impl.plugin_name for impl in hook_impls) or "nobody"
    _note(f"hook {hook_name}({', '.join(kwargs)}) -> {plugins}")


def _trace_result(
    outcome: Any, hook_name: str, hook_impls: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    if outcome.exception is not None:
        _note(f"hook {hook_name} raised {outcome.exception!r}")
