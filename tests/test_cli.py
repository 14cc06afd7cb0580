"""The command line's frame: help at once, commands in order, errors in one line."""

import errno
import logging
import os
import re
import subprocess
import sys
import time
import warnings

import click
import pytest
from click.testing import CliRunner

from tiaft_plugin import TiaftError, __version__, cli
from tiaft_plugin.cli import Commands, main
from tiaft_plugin.cli._logging import quiet_tiatoolbox
from tiaft_plugin.errors import SlidesFailed


def tiaft(*args: str, **env: str) -> subprocess.CompletedProcess:
    """Run ``tiaft`` in a process of its own."""
    code = "from tiaft_plugin.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def failing(monkeypatch):
    """A function that gives `tiaft fail` something to do, and runs it: exit code and stderr."""

    def run(work, capsys) -> tuple[int, str]:
        group = Commands("tiaft", context_settings=cli.cli.context_settings)
        group.loaded = True
        group.result_callback()(lambda *_, **__: None)
        group.add_command(click.Command("fail", callback=work))
        monkeypatch.setattr(cli, "cli", group)
        with pytest.raises(SystemExit) as exit:
            main(["fail"])
        return exit.value.code, capsys.readouterr().err

    return run


def raising(error: BaseException):
    def work():
        raise error

    return work


def test_help_answers_at_once_and_loads_nothing_heavy():
    code = (
        "import sys; from tiaft_plugin.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(*sys.modules, file=sys.stderr)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert time.perf_counter() - began < 5  # a machine under load; a quiet one takes a tenth
    heavy = {"torch", "numpy", "lightning", "timm", "zarr", "matplotlib", "paquo", "jpype"}
    assert not heavy & set(done.stderr.split())


def test_commands_stand_in_order_of_the_work():
    done = tiaft("--help")
    assert done.returncode == 0, done.stderr
    names = re.findall(r"^  ([a-z-]+)  +\S", done.stdout.split("Commands:")[1], re.M)
    ours = ["demo", "finetune", "models", "extract", "predict", "plugins", "doctor"]
    assert [name for name in names if name in ours] == ours


def test_every_command_explains_itself():
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command.get_short_help_str(100), name
        result = CliRunner().invoke(cli.cli, [name, "--help"])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version(option):
    assert tiaft(option).stdout == f"tiaft, version {__version__}\n"


@pytest.mark.parametrize("args", [["nonsense"], ["--nonsense"], ["plugins", "--nonsense"]])
def test_wrong_usage_exits_2(args):
    done = tiaft(*args)
    assert done.returncode == 2
    assert "Usage: tiaft" in done.stderr and "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_name_is_taken_once():
    group = Commands("tiaft")
    group.add_command(click.Command("demo"))
    with pytest.raises(TiaftError, match=r"plug-in .* adds the command 'demo', which is taken"):
        group.add_command(click.Command("demo"))


def test_what_a_command_returns_is_no_exit_code(failing, capsys):
    assert failing(lambda: 7, capsys)[0] == 0


def test_a_commands_own_exit_code_counts(failing, capsys):
    def work():
        click.get_current_context().exit(3)

    assert failing(work, capsys)[0] == 3


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TiaftError("a.svs is empty: copy it again"), 2, "Error: a.svs is empty: copy it again\n"),
        (TiaftError("one\n  two"), 2, "Error: one; two\n"),
        (SlidesFailed({}, {"a.svs": "no µm/px"}), 1, "Error: 1 of 1 slides failed: a.svs: no µm/"),
        (OSError(errno.ENOSPC, "No space left on device", "x.zarr"), 1, "Error: x.zarr: No space "),
        (PermissionError(13, "Permission denied", "a", None, "b"), 1, "Error: a -> b: Permission"),
        (OSError("strange"), 1, "Error: unexpected OSError: strange. Please report it"),
        (MemoryError(), 1, "Error: out of memory: a smaller --batch-size needs less"),
        (KeyError("k"), 1, "Error: unexpected KeyError: 'k'. Please report it, with what TIAFT_D"),
        (ValueError(), 1, "Error: unexpected ValueError: no more is known. Please report it"),
        (click.UsageError("no such thing"), 2, "Error: no such thing\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (click.Abort(), 130, "Interrupted.\n"),
    ],
)
def test_errors_are_one_line(failing, capsys, monkeypatch, error, code, said):
    monkeypatch.delenv("TIAFT_DEBUG", raising=False)
    found, text = failing(raising(error), capsys)
    assert found == code
    assert said in text
    assert "Traceback" not in text
    if not isinstance(error, click.UsageError):  # which shows the usage, too
        assert len(text.strip().splitlines()) == 1


def test_ctrl_c_at_once_is_one_line_too(failing, capsys, monkeypatch):
    monkeypatch.setattr(cli, "quiet_tiatoolbox", raising(KeyboardInterrupt()))
    assert failing(lambda: None, capsys) == (130, "Interrupted.\n")


@pytest.mark.parametrize("error", [KeyError("k"), TiaftError("known")])
def test_debug_shows_the_traceback(failing, capsys, monkeypatch, error):
    monkeypatch.setenv("TIAFT_DEBUG", "1")
    _, text = failing(raising(error), capsys)
    assert "Traceback" in text and "Error: " in text.splitlines()[-1]


def test_a_reader_that_goes_away_is_no_error():
    code = "from tiaft_plugin.cli import main; main(['plugins', '--json'])"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(writer)
    assert "Traceback" not in done.stderr and "Error" not in done.stderr


def test_a_console_that_lacks_some_letters():
    code = (
        "import click\nfrom tiaft_plugin import cli\n"
        "@cli.cli.command()\ndef unit(): click.echo('tile → slide')\n"
        "cli.main(['unit'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "tile ? slide\n", done.stderr


# TIAToolbox's logging

LOG = """
import logging, warnings
{first}
from tiaft_plugin.cli._logging import quiet_tiatoolbox
quiet_tiatoolbox()
quiet_tiatoolbox()
import tiatoolbox
tiatoolbox.logger.info("chatter")
logging.getLogger("other").info("chatter")
for _ in range(2):
    tiatoolbox.logger.warning("take\\n  care")
    warnings.warn("mind this", UserWarning)
    warnings.warn("for programmers", FutureWarning)
"""


@pytest.mark.parametrize("first", ["", "import tiatoolbox"])
def test_libraries_are_quiet_but_for_warnings(first):
    done = subprocess.run(
        [sys.executable, "-c", LOG.format(first=first)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    assert done.stderr == "Warning: take care\nWarning: mind this\n"


def test_quiet_leaves_other_peoples_handlers_alone(caplog):
    kept = list(logging.getLogger().handlers)
    try:
        with warnings.catch_warnings():
            quiet_tiatoolbox()
        assert caplog.handler in logging.getLogger().handlers
    finally:
        logging.getLogger().handlers = kept
        logging.captureWarnings(False)


# tiaft plugins


def test_plugins_lists_hooks_and_what_they_register():
    done = tiaft("plugins", TIAFT_DISABLE_PLUGINS="engine")
    assert "zoo (built in)\n  register_models: xception-kather100k" in done.stdout
    assert "  register_commands: demo, finetune, models" in done.stdout
    assert "engine (built in)\n  ! blocked by TIAFT_DISABLE_PLUGINS" in done.stdout


def test_plugins_as_json():
    import json

    listed = {info["name"]: info for info in json.loads(tiaft("plugins", "--json").stdout)}
    assert listed["qupath"]["hooks"] == ["register_sinks"]
    assert listed["qupath"]["registers"] == {"register_sinks": ["geojson", "qupath"]}
    assert listed["finetune"]["source"] == "built in"
    assert not any(info["error"] for info in listed.values())


def test_a_plugin_whose_commands_fail_is_named_and_the_others_stay(tmp_path):
    from test_plugins import HEADER, install

    code = "@hookimpl\ndef register_commands(cli): raise RuntimeError('no')\n"
    install(tmp_path, "bad", HEADER + code)
    taken = (
        "import click\n@hookimpl\n"
        "def register_commands(cli): cli.add_command(click.Command('doctor'))\n"
    )
    install(tmp_path, "thief", HEADER + taken)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = tiaft("--help", PYTHONPATH=path)
    assert done.returncode == 0 and "doctor" in done.stdout
    assert "plug-in bad failed in register_commands: RuntimeError: no" in done.stderr
    assert "plug-in thief adds the command 'doctor', which is taken" in done.stderr
