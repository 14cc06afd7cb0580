"""The doctor: what it finds here, and that real faults become one line with a remedy."""

import json
import os
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from click.testing import CliRunner

from tiaft_plugin import doctor
from tiaft_plugin.cli import cli
from tiaft_plugin.doctor import CHECKS, PACKAGES, Check, examine


def in_a_process(check: str, shadow: Path, **env: str) -> Check:
    """Make one check in a fresh process, where the modules of `shadow` hide others."""
    code = (
        "import json; from dataclasses import asdict; from tiaft_plugin import doctor\n"
        f"doctor.CHECKS = {{{check!r}: doctor.CHECKS[{check!r}]}}\n"
        "(result,) = doctor.examine(); print(); print(json.dumps(asdict(result)))"
    )
    path = os.pathsep.join(filter(None, [str(shadow), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Check(**json.loads(done.stdout.splitlines()[-1]))


def program(folder: Path, name: str, script: str) -> None:
    """Put a shell script on a PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_everything_that_is_needed_is_here():
    checks = {check.name: check for check in examine()}
    assert list(checks) == list(CHECKS)
    for check in checks.values():
        assert check.text and "\n" not in check.text + check.remedy
        assert check.status == "PASS" or check.remedy or "wrote" in check.text, check
    optional = {"GPU", "OpenJPEG", "SQLite", "Java", "QuPath", "Models", "Disk"}
    for name in checks.keys() - optional:
        assert checks[name].status == "PASS", checks[name]
    for name in optional:
        assert checks[name].status != "FAIL", checks[name]


@pytest.mark.parametrize(
    ("check", "module"),
    [
        ("torch", "torch"),
        ("GPU", "torch"),
        ("torchvision", "torchvision"),
        ("TIAToolbox", "cv2"),
        ("timm", "timm"),
        ("Lightning", "lightning"),
        ("OpenSlide", "openslide"),
        ("OpenSlide", "tifffile"),
        ("Codecs", "imagecodecs"),
        ("OpenJPEG", "glymur"),
        ("zarr", "zarr"),
    ],
)
def test_a_library_that_cannot_be_imported_fails(tmp_path, check, module):
    text = f"lib{module}.so.1: cannot open shared object file"
    (tmp_path / f"{module}.py").write_text(f"raise ImportError({text!r})")
    found = in_a_process(check, tmp_path)
    assert (found.status, found.text) == ("FAIL", f"ImportError: {text}")
    assert found.remedy == f"pip install --force-reinstall {PACKAGES[check]}"


def test_a_library_that_ends_the_process_fails(tmp_path):
    (tmp_path / "timm.py").write_text("raise SystemExit('no licence')")
    found = in_a_process("timm", tmp_path)
    assert (found.status, found.text) == ("FAIL", "SystemExit: no licence")


@pytest.mark.parametrize(
    ("check", "module", "code", "said"),
    [
        (
            "timm",
            "timm",
            "is_model = lambda name: False",
            "0.5 has no legacy_xception, the default backbone",
        ),
        ("zarr", "zarr", "", "0.5 is too old"),
        ("TIAToolbox", "tiatoolbox", "rcParam = {'pretrained_model_info': {}}", "0.5 is too old"),
    ],
)
def test_an_old_library_fails(tmp_path, check, module, code, said):
    (tmp_path / f"{module}.py").write_text(f"__version__ = '0.5'\n{code}\n")
    found = in_a_process(check, tmp_path)
    assert (found.status, found.text) == ("FAIL", said)
    assert found.remedy.startswith("pip install --upgrade")


def test_torch_and_torchvision_have_to_be_a_pair(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text(
        "__version__ = '0.1'\n"
        "class ops:\n"
        "    @staticmethod\n"
        "    def nms(*_): raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    found = in_a_process("torchvision", tmp_path)
    assert found.status == "FAIL"
    assert "do not fit each other: RuntimeError: operator torchvision::nms" in found.text
    assert found.remedy == "pip install --force-reinstall torch torchvision"


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2, "final", 0))
    assert doctor.python().status == "FAIL"
    assert doctor.python().remedy == "install Python 3.11 or newer"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("no-such-distribution-here", "no-such-distribution-here is missing"),
        ("click >= 999", r"click is .*, >=999 is needed"),
        ("absent ; extra == 'dev'", "all 0 are installed"),
        ("absent ; python_version < '3'", "all 0 are installed"),
    ],
)
def test_requirements(monkeypatch, wanted, said):
    import re

    monkeypatch.setattr(doctor, "requires", lambda name: [wanted])
    check = doctor.requirements()
    assert re.search(said, check.text)
    assert check.status == ("PASS" if "all 0" in said else "FAIL")


def test_a_broken_plugin_fails(tmp_path):
    from test_plugins import install

    install(tmp_path, "bad", "import nowhere")
    found = in_a_process("Plug-ins", tmp_path)
    assert found.status == "FAIL"
    assert "bad (plugin_bad 1.5): ModuleNotFoundError" in found.text
    assert found.remedy == "mend them, or set TIAFT_DISABLE_PLUGINS=bad"
    assert in_a_process("Plug-ins", tmp_path, TIAFT_DISABLE_PLUGINS="bad").status == "PASS"


def test_an_nvidia_driver_without_a_torch_for_it(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.gpu().text == "none"
    program(tmp_path, "nvidia-smi", "")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.gpu().status == "WARN"
    assert "an NVIDIA driver, but torch for CPUs cannot use it" in doctor.gpu().text


def test_a_gpu_that_cannot_compute_fails(monkeypatch):
    import torch

    def ones(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(doctor, "CHECKS", {"GPU": doctor.gpu})
    (check,) = examine()
    assert check.status == "FAIL" and "no kernel image" in check.text


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        (None, "WARN", "none on the PATH"),
        (
            "echo 'openjdk version \"21.0.1\"' >&2",
            "PASS",
            'openjdk version "21.0.1", without javac',
        ),
        ("echo 'Unable to locate a Java Runtime.' >&2; exit 1", "WARN", "does not run: Unable to"),
        ("exit 1", "WARN", "does not run: it says nothing"),
    ],
)
def test_java(tmp_path, monkeypatch, script, status, said):
    if script:
        program(tmp_path, "java", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.java()
    assert check.status == status and said in check.text


def test_qupath_without_paquo(monkeypatch):
    def missing(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    check = doctor.qupath()
    assert check.status == "WARN" and "pip install 'tiaft_plugin[qupath]'" in check.remedy


def test_qupath_where_it_is_not(tmp_path):
    pytest.importorskip("paquo")
    found = in_a_process("QuPath", tmp_path, PAQUO_QUPATH_DIR=str(tmp_path / "Nowhere"))
    assert found.status == "WARN"
    assert f"finds no QuPath in {tmp_path / 'Nowhere'}: FileNotFoundError" in found.text
    assert "PAQUO_QUPATH_DIR" in found.remedy


@pytest.mark.skipif(sys.platform != "linux", reason="QuPath's folder as Linux has it")
def test_qupath_where_it_is(tmp_path):
    pytest.importorskip("paquo")
    app = tmp_path / "QuPath/lib/app"
    jvm = tmp_path / "QuPath/lib/runtime/lib/server/libjvm.so"
    for file in (app / "qupath-app-0.6.0.jar", jvm):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = in_a_process("QuPath", tmp_path, PAQUO_QUPATH_DIR=str(tmp_path / "QuPath"))
    assert found.status == "PASS"
    assert found.text.startswith(f"QuPath 0.6.0 in {app}, paquo ")


def test_no_models_yet(model_folder):
    check = doctor.model_folder()
    assert check.status == "WARN" and str(model_folder) in check.text
    assert "tiaft models add NAME SOURCE" in check.remedy
    assert not model_folder.exists()  # nothing is changed


def test_models_and_one_that_is_broken(model_folder):
    from tiaft_plugin.network import save_model
    from tiaft_plugin.network.create import create_network

    net = create_network("test_resnet", ("TUM", "STR"), init="random", tile_size=32, mpp=0.5)
    save_model(net, model_folder / "mine.safetensors")
    check = doctor.model_folder()
    assert (check.status, check.text) == ("PASS", f"mine in {model_folder}")
    (model_folder / "half.safetensors").write_bytes(b"half")
    check = doctor.model_folder()
    assert check.status == "WARN" and "half.safetensors is not a whole safetensors" in check.text


def test_a_model_folder_that_is_a_file(model_folder):
    model_folder.write_text("")
    check = doctor.model_folder()
    assert check.status == "FAIL" and check.remedy == "set TIAFT_MODELS to another folder"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_model_folder_that_may_not_be_written(model_folder):
    model_folder.mkdir()
    model_folder.chmod(0o500)
    assert doctor.model_folder().status == "FAIL"


def test_little_room(model_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**9, 10**9)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    check = doctor.disk()
    assert check.status == "WARN" and check.text.startswith("1.0 GB free at ")


# The command


def only(monkeypatch, *checks: Check) -> None:
    """Let the doctor find these things only."""
    made = {check.name: lambda check=check: check for check in checks}
    monkeypatch.setattr(doctor, "CHECKS", made)


def test_the_command_shows_remedies_and_fails_where_something_does(monkeypatch):
    only(monkeypatch, Check("A", "PASS", "1.0"), Check("B", "WARN", "none", "get one"))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0
    assert result.output == "PASS  A: 1.0\nWARN  B: none\n      → get one\n"
    only(monkeypatch, Check("C", "FAIL", "broken", "mend it"))
    assert CliRunner().invoke(cli, ["doctor"]).exit_code == 1


def test_the_command_as_json(monkeypatch):
    only(monkeypatch, Check("C", "FAIL", "broken", "mend it"))
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    assert result.exit_code == 1
    listed = [{"name": "C", "status": "FAIL", "text": "broken", "remedy": "mend it"}]
    assert json.loads(result.output) == listed
