"""The plug-ins of ``examples/``, installed as a stranger would and run in fresh processes."""

import csv
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import processes
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = (
    "model_plugin",
    "probe_plugin",
    "sink_plugin",
    "finetune_plugin",
    "hook_plugin",
    "command_plugin",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with all examples installed, offline, out of copies (building leaves files)."""
    if not find_spec("pip"):
        pytest.skip("this environment has no pip to install the examples with")
    try:
        major, minor = map(int, version("setuptools").split(".")[:2])
    except PackageNotFoundError:
        major, minor = 0, 0
    if (major, minor) < (70, 1):
        pytest.skip("building the examples offline needs setuptools >= 70.1")
    copies, target = tmp_path_factory.mktemp("copies"), tmp_path_factory.mktemp("installed")
    for name in NAMES:
        shutil.copytree(EXAMPLES / name, copies / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    options = ["--no-build-isolation", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run(
        [*command, *options, *[str(copies / name) for name in NAMES]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return target


def run(installed: Path, code: str, *args: str) -> str:
    """Run Python code with the installed examples; return what it prints."""
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    done = processes.run(code, *args, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    return done.stdout


TIAFT = "from tiaft_plugin.cli import main; main()"


def test_tiaft_plugins_lists_them(installed):
    listed = run(installed, TIAFT, "plugins")
    for line in (
        "colour-texture (tiaft-colour-texture 0.1)\n  register_models: colour-texture\n",
        "knn (tiaft-knn 0.1)\n  register_probes: knn\n",
        "cosine (tiaft-cosine 0.1)\n  choose_optimizer\n",
        "tile-table (tiaft-tile-table 0.1)\n  register_sinks: tile-table\n",
        "tile-area (tiaft-tile-area 0.1)\n  choose_augmentation\n  measure_tiles\n",
        "classes (tiaft-classes 0.1)\n  register_commands: classes\n",
    ):
        assert line in listed


def test_the_model_keeps_its_promises(installed):
    code = """
from tiaft_plugin.plugins import collect
from tiaft_plugin.testing import check_model
model = collect("register_models")["colour-texture"]
check_model(model.thing(), tile_size=model.options["tile_size"], classes=model.options["classes"])
print(model.plugin, model.options)
"""
    said = run(installed, code)
    assert said.startswith("colour-texture {'tile_size': 224, 'mpp': 0.5, 'classes': ()")


def test_the_probe_keeps_its_promises(installed):
    code = """
from tiaft_plugin.plugins import collect
from tiaft_plugin.testing import check_probe
probe = collect("register_probes")["knn"]
check_probe(probe.thing)
print(probe.plugin, probe.thing.kind, dict(probe.thing.settings))
"""
    assert run(installed, code) == "knn classes {'neighbours': 5}\n"


def test_the_sink_keeps_its_promises(installed, tmp_path):
    code = """
import sys
from pathlib import Path
from tiaft_plugin.plugins import collect
from tiaft_plugin.testing import check_sink
from tiaft_plugin.testing.sinks import _predictions
sink = collect("register_sinks")["tile-table"]
check_sink(sink.thing, sink.options["suffix"])
sink.thing(_predictions(Path("a.svs"), [2]), Path(sys.argv[1]))
"""
    file = tmp_path / "a.csv"
    run(installed, code, str(file))
    head, *rows = file.read_text().splitlines()
    assert head == "id,x0,y0,x1,y1,class,TUM,STR,NORM"
    assert [row.split(",")[1:5] for row in rows] == [
        ["0.0", "0.0", "63.5", "63.5"],
        ["64.0", "0.0", "127.5", "63.5"],
    ]


def test_the_hooks_are_heard(installed):
    code = """
from pathlib import Path
import numpy as np
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.testing.sinks import _block
hook = plugin_manager().hook
found = hook.measure_tiles(slide=None, tiles=_block(0, 2, 3), store=Path('none.zarr'))
[added] = filter(None, found)  # another plug-in's, of scores that this store has none of, is {}
print(added["Area px^2"].tolist())
tile = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
assert hook.choose_augmentation(stage=1, tile_size=2) is None
turn = hook.choose_augmentation(stage=2, tile_size=2)
turned = {turn(tile, np.random.default_rng(seed)).tobytes() for seed in range(40)}
print(turned == {np.rot90(tile, quarters).tobytes() for quarters in range(4)})
"""
    assert run(installed, code) == f"{[63.5**2] * 2}\nTrue\n"


def test_the_schedule_is_a_cosine(installed):
    code = """
import torch
from tiaft_plugin.plugins import call_hook
weights = [torch.nn.Parameter(torch.zeros(3))]
optimizer, scheduler = call_hook(
    "choose_optimizer", stage=1, parameters=weights, lr=0.5, steps=40
)
for _ in range(41):
    print(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
"""
    rates = [float(line) for line in run(installed, code).splitlines()]
    assert rates[:3] == pytest.approx([1 / 6, 1 / 3, 0.5])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[21] == pytest.approx(0.25) and rates[40] == pytest.approx(0, abs=1e-12)


def test_a_finetuning_follows_the_schedule(installed, tmp_path):
    from PIL import Image

    for label, colour in (("TUM", (230, 160, 200)), ("STR", (120, 60, 150))):
        for number in range(4):
            file = tmp_path / "tiles" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), colour).save(file)
    run(
        installed, TIAFT, "finetune", str(tmp_path / "tiles"), "--out", str(tmp_path / "out"),
        "--backbone", "test_resnet", "--init", "random", "--mpp", "0.5", "--epochs", "4,0",
        "--batch-size", "4", "--device", "cpu",
    )  # fmt: skip
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["split"] == "train"]
    assert rates == sorted(rates, reverse=True) and 4e-4 > rates[0] > 3 * rates[-1] >= 0


def test_the_command_runs(installed, tmp_path):
    from tiaft_plugin.network import save_model
    from tiaft_plugin.network.create import create_network

    net = create_network("test_resnet", ("TUM", "STR"), init="random", tile_size=32, mpp=0.5)
    file = save_model(net, tmp_path / "m.safetensors")
    assert run(installed, TIAFT, "classes", str(file)) == "TUM\nSTR\n"


def test_examples_are_short():
    for name in NAMES:
        (module,) = (EXAMPLES / name).glob("*.py")
        lines = [line for line in module.read_text().splitlines() if line.strip()]
        assert len(lines) <= 25, f"{module} is no short example any more"
