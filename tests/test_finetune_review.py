"""Resuming with what is not the same, and results that nothing may write over."""

import os
import shutil
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import job_on, make_tiles
from test_finetune_resume import PulledPlug, interrupted
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune.processes import launched, make_fabric
from tiaft_plugin.finetune.stages import run_stages
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.tiles.tileset import read_tileset

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    train, val = make_tiles(root / "train", 9), make_tiles(root / "val", 3, seed=1)
    return read_tileset(train, mpp=0.5), read_tileset(val, mpp=0.5)


@pytest.fixture
def job(sets, tmp_path):
    return replace(job_on(sets, tmp_path / "run"), checkpoint_steps=1)


@pytest.fixture
def choosing():
    """Have a function choose the optimiser, until it is called again or the test ends."""
    manager = plugin_manager()

    def choose(function):
        if manager.has_plugin("choosing"):
            manager.unregister(name="choosing")
        if function is not None:

            class Choosing:
                @hookimpl
                def choose_optimizer(self, parameters, lr):
                    return function(parameters, lr)

            manager.register(Choosing(), "choosing")

    yield choose
    choose(None)


def cosine(parameters, lr):
    optimizer = torch.optim.SGD(parameters, lr=lr)
    return optimizer, CosineAnnealingLR(optimizer, 10)


def test_tiles_in_another_order_are_another_run(job, monkeypatch):
    """Shuffling begins from their order, and what was measured stands in it."""
    interrupted(job, monkeypatch)
    turned = job.val.subset(reversed(range(len(job.val))))
    with pytest.raises(TiaftError, match="other settings: order of tiles "):
        run_stages(replace(job, val=turned))


def test_several_labels_a_tile_are_another_run_though_each_has_one(job, monkeypatch):
    interrupted(job, monkeypatch)
    train, val = (read_tileset(s.root, mpp=0.5, multilabel=True) for s in (job.train, job.val))
    with pytest.raises(TiaftError, match="other settings: task multilabel, was classes"):
        run_stages(replace(job, train=train, val=val, targets="multilabel"))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, cosine, "goes by SGD and CosineAnnealingLR now, and went by Adam before the int"),
        (cosine, None, "goes by Adam now, and went by SGD and CosineAnnealingLR before the int"),
    ],
)
def test_another_plugin_than_before_the_interruption_is_refused(
    job, monkeypatch, choosing, before, after, message
):
    choosing(before)
    interrupted(job, monkeypatch)
    choosing(after)
    with pytest.raises(TiaftError, match=message):
        run_stages(job)


def plateau(parameters, lr):
    optimizer = torch.optim.SGD(parameters, lr=lr)
    return optimizer, ReduceLROnPlateau(optimizer)


def of_numpy(parameters, lr):
    return torch.optim.SGD(parameters, lr=np.float64(lr))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (plateau, "ReduceLROnPlateau, which steps by losses, .*schedule=plateau"),
        (of_numpy, r"whose state holds numpy.*, which checkpoints do not: .* plain numbers"),
    ],
)
def test_what_could_not_go_on_after_an_interruption_is_refused_at_once(
    job, choosing, function, message
):
    choosing(function)
    with pytest.raises(TiaftError, match=message):
        run_stages(job)


def test_a_run_killed_while_it_cleans_up_is_not_written_over(job, monkeypatch):
    def half(folder, **options):
        for state in folder.glob("*.pt"):
            state.unlink()
        raise PulledPlug

    with monkeypatch.context() as patch, pytest.raises(PulledPlug):
        patch.setattr(shutil, "rmtree", half)
        run_stages(job)
    before = (job.out / "model.safetensors").read_bytes()
    with pytest.raises(TiaftError, match="exists already"):
        run_stages(replace(job, seed=1))
    assert (job.out / "model.safetensors").read_bytes() == before


def test_balanced_sampling_is_for_one_class_a_tile(job):
    train, val = (read_tileset(s.root, mpp=0.5, multilabel=True) for s in (job.train, job.val))
    several = replace(job, train=train, val=val, targets="multilabel", balance="sampling")
    with pytest.raises(TiaftError, match="balanced sampling needs one class a tile"):
        run_stages(several)
    assert not job.out.exists()


def test_other_devices_than_torchrun_started_are_refused_in_one_line(job, monkeypatch):
    given = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    given |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    given |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "tiaft", raising=False)
    with pytest.raises(TiaftError, match=r"--devices 3 --nodes 1: .* does not match the world"):
        make_fabric(replace(job, devices=3), torch.device("cpu"))


def test_a_run_leaves_the_number_of_threads_alone(job):
    before = torch.get_num_threads()
    with launched(make_fabric(job, torch.device("cpu"))):
        torch.set_num_threads(before + 1)  # as Lightning does for several processes
    assert torch.get_num_threads() == before


def kill_reader(tile, rng):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_is_told_in_one_line(job):
    """As the kernel does where memory is short."""

    class Killing:
        @hookimpl
        def choose_augmentation(self):
            return kill_reader

    plugin_manager().register(Killing(), "killing")
    try:
        with pytest.raises(Stopped, match="a worker that read tiles has ended .*fewer --workers"):
            run_stages(replace(job, workers=1))
    finally:
        plugin_manager().unregister(name="killing")
