"""The plug-in manager: what it loads, whom it blames, and that every hook is documented."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest

from tiaft_plugin import TiaftError, hookimpl, hookspecs, plugins
from tiaft_plugin.plugins import (
    REGISTER,
    Manager,
    call_hook,
    collect,
    describe,
    each_plugin,
    hooks_of,
)

ROOT = Path(__file__).parents[1]
HOOKS = {
    name: function for name, function in vars(hookspecs).items() if hasattr(function, "tiaft_spec")
}


@pytest.fixture
def manager(monkeypatch) -> Manager:
    """An empty manager with tiaft's hooks, in place of the real one."""
    manager = Manager()
    manager.add_hookspecs(hookspecs)
    monkeypatch.setattr(plugins, "plugin_manager", lambda: manager)
    return manager


def add(manager: Manager, name: str, **functions) -> None:
    """Register a plug-in made of functions."""
    plugin = type(name, (), {})()
    for hook, function in functions.items():
        setattr(plugin, hook, hookimpl(function))
    manager.register(plugin, name=name)
    manager.sources[name] = f"{name} 1.0"


def install(folder: Path, name: str, code: str) -> None:
    """Write an installed plug-in: a module, and a .dist-info that names its entry point."""
    module = f"plugin_{name}"
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[tiaft]\n{name} = {module}\n")


def run(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess:
    """Run Python code in a fresh process that has the plug-ins of `folder`."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


LIST = "from tiaft_plugin.plugins import *; print([i.name for i in describe() if not i.error])"
HEADER = "from tiaft_plugin import hookimpl\n"


# Registering


def test_collect_says_what_was_registered_and_whose_it_is(manager):
    add(manager, "a", register_models=lambda register: register("m", int, tile_size=8, mpp=0.5))
    add(manager, "b", register_models=lambda register: register("n", int, tile_size=9, mpp=1.0))
    found = collect("register_models")
    assert list(found) == ["m", "n"]
    assert (found["n"].thing, found["n"].plugin) == (int, "b")
    assert found["n"].options == {"tile_size": 9, "mpp": 1.0, "classes": (), "multilabel": False}


def test_two_plugins_cannot_take_one_name(manager):
    for name in "ab":
        add(manager, name, register_sinks=lambda register: register("s", print, suffix=".x"))
    with pytest.raises(TiaftError, match="plug-ins a and b both register 's'; TIAFT_DISABLE_PLU"):
        collect("register_sinks")


def test_one_plugin_cannot_register_a_name_twice(manager):
    def register_probes(register):
        register("p", 1)
        register("p", 2)

    add(manager, "a", register_probes=register_probes)
    with pytest.raises(TiaftError, match="plug-in a registers 'p' twice"):
        collect("register_probes")


@pytest.mark.parametrize("name", ["", "two words", "a,b", "a/b", 5, None])
def test_what_cannot_be_typed_is_no_name(manager, name):
    add(manager, "a", register_finetuners=lambda register: register(name, print))
    with pytest.raises(TiaftError, match=r"plug-in a registers the name .* in register_finetuners"):
        collect("register_finetuners")


@pytest.mark.parametrize(
    ("hook", "call", "said"),
    [
        ("register_sinks", lambda r: r("s", suffix=".x"), "missing a required argument: 'write'"),
        ("register_models", lambda r: r("m", int, mpp=1), "required argument: 'tile_size'"),
        (
            "register_models",
            lambda r: r("m", int, tile_size=1, mpp=1, clases=("a", "b")),
            "unexpected keyword argument 'clases'",
        ),
        ("register_probes", lambda r: r("p"), "missing a required argument: 'probe'"),
    ],
)
def test_a_misspelt_option_is_refused(manager, hook, call, said):
    add(manager, "a", **{hook: lambda register: call(register)})
    with pytest.raises(TiaftError, match=f"plug-in a calls register wrongly in {hook}: .*{said}"):
        collect(hook)


def test_a_failing_plugin_is_named(manager):
    add(manager, "bad", register_models=lambda register: 1 / 0)
    with pytest.raises(TiaftError, match=r"bad failed in register_models: ZeroDivisionError.*DISA"):
        collect("register_models")


def test_describe_tells_of_a_failing_plugin_and_goes_on(manager):
    add(manager, "bad", register_models=lambda register: 1 / 0)
    add(manager, "good", register_sinks=lambda register: register("s", print, suffix=".x"))
    bad, good = describe()
    assert "ZeroDivisionError" in bad.error
    assert (good.hooks, good.registers) == (["register_sinks"], {"register_sinks": ["s"]})
    assert (good.source, good.error) == ("good 1.0", "")


def test_a_probe_cannot_take_the_name_of_a_command(manager):
    add(manager, "a", register_probes=lambda register: register("compare", object()))
    with pytest.raises(TiaftError, match="plug-in a registers 'compare' .* `tiaft probe compare`"):
        collect("register_probes")


def test_each_plugin_calls_one_at_a_time(manager):
    called = []
    for name in "ab":
        add(manager, name, measure_tiles=lambda slide, name=name: called.append(name))
    add(manager, "c", register_probes=lambda register: None)
    calls = dict(each_plugin("measure_tiles"))
    assert list(calls) == ["a", "b"]
    calls["b"](slide=None, tiles=None, store=None)
    assert called == ["b"]


def test_hooks_of(manager):
    add(manager, "a", stage_ended=lambda stage: None, epoch_ended=lambda epoch: None)
    assert hooks_of(manager.get_plugin("a")) == ["epoch_ended", "stage_ended"]


# Every hook


@pytest.mark.parametrize("hook", list(REGISTER))
def test_what_a_register_hook_is_given(manager, hook):
    """register_models, …_finetuners, register_probes, register_aggregators, register_sinks."""
    options = {"register_models": {"tile_size": 1, "mpp": 1.0}, "register_sinks": {"suffix": ".x"}}
    add(manager, "a", **{hook: lambda register: register("n", "it", **options.get(hook, {}))})
    assert collect(hook)["n"].thing == "it"


def test_register_commands_gets_the_group(manager):
    import click

    add(manager, "a", register_commands=lambda cli: cli.add_command(click.Command("hello")))
    assert describe()[0].registers == {"register_commands": ["hello"]}


@pytest.mark.parametrize("hook", ["stage_started", "stage_ended", "epoch_ended"])
def test_what_an_observer_is_told(manager, hook):
    said = []
    names = list(inspect.signature(HOOKS[hook]).parameters)
    namespace = {"said": said}
    exec(f"def observe({', '.join(names)}): said.append([{', '.join(names)}])", namespace)
    add(manager, "a", **{hook: namespace["observe"]})
    getattr(manager.hook, hook)(**{name: name for name in names})
    assert said == [names]


@pytest.mark.parametrize("hook", ["choose_optimizer", "choose_augmentation"])
def test_the_first_choice_wins_and_none_leaves_it_to_others(manager, hook):
    add(manager, "first", **{hook: lambda stage: "first"})
    add(manager, "second", **{hook: lambda stage: "second" if stage == 2 else None})
    names = inspect.signature(HOOKS[hook]).parameters
    for stage, winner in ((1, "first"), (2, "second")):
        assert getattr(manager.hook, hook)(**dict.fromkeys(names, stage)) == winner


def test_every_plugin_measures_tiles(manager):
    add(manager, "a", measure_tiles=lambda tiles: {"A": tiles})
    add(manager, "b", measure_tiles=lambda slide: {"B": slide})
    added = manager.hook.measure_tiles(slide="s", tiles=[1.0], store=None)
    assert sorted(added, key=str) == [{"A": [1.0]}, {"B": "s"}]


def test_call_hook_gives_what_the_hook_gives(manager):
    add(manager, "a", measure_tiles=lambda tiles: {"A": tiles}, choose_optimizer=lambda lr: "a")
    add(manager, "b", measure_tiles=lambda slide: {"B": slide}, choose_optimizer=lambda lr: "b")
    assert call_hook("measure_tiles", slide="s", tiles=1, store=None) == [{"B": "s"}, {"A": 1}]
    assert call_hook("choose_optimizer", stage=1, parameters=[], lr=0.1, steps=9) == "b"
    assert call_hook("stage_ended", stage=1, network=None) == []
    assert call_hook("choose_augmentation", stage=1, tile_size=8) is None


def test_a_plugin_that_fails_inside_a_run_is_named(manager):
    def bad(tiles):
        raise ValueError("no measure\nfor that")

    add(manager, "good", measure_tiles=lambda tiles: {})
    add(manager, "bad", measure_tiles=bad)
    fault = (
        r"plug-in bad failed in measure_tiles: ValueError: no measure; "
        r"TIAFT_DISABLE_PLUGINS=bad leaves it out"
    )
    with pytest.raises(TiaftError, match=fault):
        call_hook("measure_tiles", slide="s", tiles=[], store=None)


def test_a_hook_around_the_others_is_not_blamed_for_them(manager):
    class Around:
        @hookimpl(wrapper=True)
        def measure_tiles(self, tiles):
            found = yield
            if tiles == "fail":
                raise ValueError("mine")
            return [*found, "around"]

    manager.register(Around(), name="around")
    add(manager, "inner", measure_tiles=lambda tiles: 1 / tiles if tiles == 0 else "inner")
    assert call_hook("measure_tiles", slide="s", tiles=1, store=None) == ["inner", "around"]
    with pytest.raises(TiaftError, match="plug-in inner failed in measure_tiles: ZeroDiv"):
        call_hook("measure_tiles", slide="s", tiles=0, store=None)
    with pytest.raises(TiaftError, match="plug-in around failed in measure_tiles: ValueError"):
        call_hook("measure_tiles", slide="s", tiles="fail", store=None)


def test_every_hook_is_documented_with_its_signature():
    documented = re.findall(r"^### (\w+\(.*\))$", (ROOT / "docs/plugins.md").read_text(), re.M)
    assert documented == [f"{name}{inspect.signature(hook)}" for name, hook in HOOKS.items()]


def test_what_register_takes_is_documented():
    text = (ROOT / "docs/plugins.md").read_text()
    for hook, signature in REGISTER.items():
        section = text.split(f"### {hook}(")[1].split("###")[0]
        assert f"`register{signature}`" in section, hook


def test_every_hook_has_a_docstring_and_a_test():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for name, hook in HOOKS.items():
        assert inspect.getdoc(hook), name
        assert re.search(rf"\b{name}\b", tests), f"no test mentions {name}"


def test_the_documented_plugin_is_the_example():
    code = (ROOT / "examples/sink_plugin/tiaft_tile_table.py").read_text()
    assert code in (ROOT / "docs/plugins.md").read_text()


# Installed plug-ins, in processes of their own


def test_an_installed_plugin_is_found(tmp_path):
    install(tmp_path, "mine", HEADER + "@hookimpl\ndef register_probes(register): pass\n")
    done = run(tmp_path, LIST)
    assert "'mine'" in done.stdout and "'zoo'" in done.stdout, done.stderr
    code = "from tiaft_plugin.plugins import *; print({i.name: i.source for i in describe()})"
    assert "'mine': 'plugin_mine 1.5'" in run(tmp_path, code).stdout


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import nowhere", "ModuleNotFoundError.*nowhere"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("", "no function marked with tiaft_plugin.hookimpl"),
        (
            HEADER + "@hookimpl\ndef register_model(register): pass",
            r"register_model is no hook of tiaft: did you mean register_models\?",
        ),
        (HEADER + "@hookimpl\ndef register_models(registrar): pass", "registrar"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_work(tmp_path, code, reason):
    install(tmp_path, "bad", code)
    install(tmp_path, "fine", HEADER + "@hookimpl\ndef measure_tiles(tiles): pass\n")
    done = run(tmp_path, LIST)
    assert "'fine'" in done.stdout and "'bad'" not in done.stdout, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(rf"plug-in bad \(plugin_bad\) is left out: .*{reason}", line)
    assert line.endswith("TIAFT_DISABLE_PLUGINS=bad silences this")
    assert run(tmp_path, LIST, TIAFT_DISABLE_PLUGINS="bad").stderr == ""


def test_a_broken_plugin_is_left_out_whole(tmp_path):
    code = "@hookimpl\ndef epoch_ended(epoch): pass\n@hookimpl\ndef epoch_began(epoch): pass\n"
    install(tmp_path, "half", HEADER + code)
    ask = "from tiaft_plugin.plugins import *; print(plugin_manager().hook.epoch_ended."
    assert run(tmp_path, ask + "get_hookimpls())").stdout.strip() == "[]"


def test_a_plugin_cannot_take_the_name_of_a_built_in(tmp_path):
    install(tmp_path, "zoo", HEADER + "@hookimpl\ndef measure_tiles(tiles): pass\n")
    done = run(tmp_path, LIST)
    assert "'zoo'" in done.stdout
    assert "built in has a plug-in of that name already" in done.stderr


def test_blocking(tmp_path):
    install(tmp_path, "mine", HEADER + "@hookimpl\ndef measure_tiles(tiles): pass\n")
    done = run(tmp_path, LIST, TIAFT_DISABLE_PLUGINS="mine, qupath,nobody")
    assert "'mine'" not in done.stdout and "'qupath'" not in done.stdout
    assert "'zoo'" in done.stdout
    assert "TIAFT_DISABLE_PLUGINS names 'nobody', which is no plug-in (there are: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_tracing(tmp_path):
    install(tmp_path, "mine", HEADER + "@hookimpl\ndef measure_tiles(tiles): 1 / 0\n")
    code = (
        "from tiaft_plugin.plugins import *\n"
        "call_hook('stage_ended', stage=1, network=None)\n"
        "try: call_hook('measure_tiles', slide=1, tiles=2, store=3)\n"
        "except TiaftError: pass\n"
    )
    assert run(tmp_path, code).stderr == ""
    lines = run(tmp_path, code, TIAFT_TRACE_PLUGINS="1").stderr.splitlines()
    assert lines[0].startswith("tiaft: hook stage_ended(stage, network) -> ")
    asked = "histotransfer, interpretability, mine"
    assert lines[1] == f"tiaft: hook measure_tiles(slide, tiles, store) -> {asked}"
    assert lines[2].startswith("tiaft: hook measure_tiles raised TiaftError(")
    assert "plug-in mine failed in measure_tiles: ZeroDivisionError" in lines[2]


def test_optional_hooks_of_later_versions_are_allowed(tmp_path):
    code = "@hookimpl(optionalhook=True)\ndef of_tomorrow(): pass\n"
    install(tmp_path, "early", HEADER + code)
    done = run(tmp_path, LIST)
    assert "'early'" in done.stdout and done.stderr == ""


def test_built_ins_load_nothing_heavy(tmp_path):
    code = "import sys; from tiaft_plugin.plugins import *; describe(); print(*sys.modules)"
    loaded = set(run(tmp_path, code).stdout.split())
    assert "tiaft_plugin.cli.builtin" in loaded
    assert not loaded & {"torch", "lightning", "matplotlib", "paquo", "zarr"}


def test_a_pluggy_validation_error_becomes_one_line():
    error = pluggy.PluginValidationError(None, "first\nsecond")
    assert plugins._reason(error) == "first; second"


@pytest.mark.parametrize(
    "extension", ["histotransfer", "interpretability", "transcriptomics", "truncation"]
)
def test_extensions_use_what_a_strangers_plugin_could(extension):
    """Public names of tiaft_plugin alone; and tiaft_plugin knows no extension."""
    for file in (ROOT / "extensions" / extension).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tiaft_plugin"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                assert not [name for name in names if name.startswith("_")], (file, names)
    for file in (ROOT / "tiaft_plugin").rglob("*.py"):
        assert "tiaft_extensions" not in file.read_text(encoding="utf-8"), file
