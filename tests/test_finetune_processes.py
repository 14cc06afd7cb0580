"""One fine-tuning on several processes."""

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest
from test_finetune import BACKBONE, make_tiles, rows_of

from tiaft_plugin.network import load_model


def options(folder, out, *more):
    return [
        "finetune", str(folder / "train"), "--val", str(folder / "val"), "--mpp", "0.5", "--out",
        str(folder / out), "--backbone", BACKBONE, "--init", "random", "--hidden", "8", "--device",
        "cpu", "--epochs", "3,3", "--lr", "1e-2,1e-3", "--batch-size", "6",
        "--freeze-batchnorm", *more,
    ]  # fmt: skip


SCRIPT = "__file__ = 'tiaft'; from tiaft_plugin.cli import main; main()"


def run(*arguments):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).with_name("tiaft")), *options(*arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_measure_what_one_does(tmp_path):
    """Over gloo, with BatchNorm frozen: there is no SyncBatchNorm on CPUs."""
    make_tiles(tmp_path / "train", 9)
    make_tiles(tmp_path / "val", 4, seed=1)
    one = run(tmp_path, "one", "--precision", "float32")
    two = run(tmp_path, "two", "--precision", "float32", "--devices", "2")
    rows = [rows_of(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        for name in ("loss", "accuracy"):
            assert float(single[name]) == pytest.approx(float(double[name]), abs=1e-3)
    models = [load_model(tmp_path / n / "model.safetensors").state_dict() for n in ("one", "two")]
    assert max((models[0][k] - models[1][k]).abs().max() for k in models[0]) < 1e-3
    assert two.stdout == one.stdout.replace("/one/", "/two/")  # said once
    assert two.stderr.count("Stage 1 of 2: 100%") == one.stderr.count("Stage 1 of 2: 100%")


def test_a_program_that_cannot_be_started_again_is_told_so(tmp_path):
    make_tiles(tmp_path / "train", 9)
    make_tiles(tmp_path / "val", 4, seed=1)
    begin = "from tiaft_plugin.cli import main; main()"
    done = processes.run(begin, *options(tmp_path, "run", "--devices", "2"))
    assert done.returncode == 2
    assert "run tiaft or a script, not a notebook" in done.stderr


def test_too_few_tiles_for_all_processes_are_refused(tmp_path):
    make_tiles(tmp_path / "train", 9)
    make_tiles(tmp_path / "val", 4, seed=1)
    done = processes.run(SCRIPT, *options(tmp_path, "run", "--devices", "4"))
    assert done.returncode == 2
    assert "4 processes need batches of 8 tiles or more" in done.stderr


def test_other_machines_that_nobody_started_are_not_awaited(tmp_path, monkeypatch):
    make_tiles(tmp_path / "train", 9)
    make_tiles(tmp_path / "val", 4, seed=1)
    for name in list(os.environ):
        if name.startswith(("SLURM", "MASTER", "TORCHEL")):
            monkeypatch.delenv(name)
    done = processes.run(SCRIPT, *options(tmp_path, "run", "--nodes", "2"))
    assert done.returncode == 2
    assert "no other machine is known here: start the same command on all with srun" in done.stderr
