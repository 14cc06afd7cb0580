"""Epochs around any step: gone on with after each save, the best kept, stopped for lost ones."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import checkpoint
from tiaft_plugin.finetune.epochs import Epochs, Learner, Work
from tiaft_plugin.finetune.interface import FinetuneJob


class Line(Learner):
    def __init__(self):
        super().__init__()
        self.line, self.fixed = nn.Linear(3, 1), nn.Linear(2, 2).requires_grad_(False)


class Lines(Epochs):
    """Learns y = sum(x) from two rows a step; says what `told` has of validation, by epoch."""

    told = ()

    def __init__(self, work):
        optimizer = torch.optim.Adam(work.tuned.learns().values(), lr=work.settings.lr)
        super().__init__(work, optimizer, [(0, 2), (2, 4), (4, 5)])

    def step(self, samples):
        rows = self.work.train[samples]
        loss = (self.work.tuned.line(rows)[:, 0] - rows.sum(1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def measure(self, split):
        return {"loss": self.told[self.progress.epoch]}


def lines(folder, told=(), keep="best", lr=0.1):
    torch.manual_seed(0)
    rows = torch.randn(5, 3)
    job = FinetuneJob(out=folder, train=rows, checkpoint_steps=1)
    settings = SimpleNamespace(epochs=3, lr=lr, keep=keep)
    its = Lines(Work(Line(), settings, rows, list(told) or None, job, folder))
    its.told = told
    return its


class Killed(Exception):
    pass


def test_gone_on_with_after_any_save_it_ends_the_same(tmp_path, monkeypatch):
    whole = lines(tmp_path / "whole", (3.0, 1.0, 2.0))
    wanted, saves = whole.run(), []
    save = checkpoint.save
    for kill in (1, 2, 3, 5):  # two saves in an epoch, one at its end
        folder, saves = tmp_path / str(kill), []

        def save_and_die(path, content, saves=saves, kill=kill):
            save(path, content)
            saves.append(path)
            if len(saves) == kill:
                raise Killed

        monkeypatch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            lines(folder, (3.0, 1.0, 2.0)).run()
        again = lines(folder, (3.0, 1.0, 2.0))
        found = again.run()
        assert found.rows == wanted.rows and len(saves) == 9
        for name, weights in whole.work.tuned.state_dict().items():
            assert torch.equal(again.work.tuned.state_dict()[name], weights)


@pytest.mark.parametrize(
    "told, keep, epoch",
    [((3.0, 1.0, 2.0), "best", 2), ((2.0, 2.0, 2.0), "best", 1), ((3.0, 1.0, 2.0), "last", 3)],
)
def test_the_best_epoch_is_kept_the_earliest_of_equals(tmp_path, told, keep, epoch):
    its, seen = lines(tmp_path / "its", told, keep), []
    measure = its.measure
    its.measure = lambda split: seen.append(its.work.tuned.state()) or measure(split)
    found = its.run()
    assert (found.best["epoch"] if found.best else 3) == epoch
    assert [row["loss"] for row in found.rows_of("val")] == list(told)
    for name, weights in its.work.tuned.state().items():
        assert torch.equal(weights, seen[epoch - 1][name])
    assert set(seen[0]) == {"line.weight", "line.bias"}  # what does not learn is not kept


def test_a_loss_that_is_no_number_stops_it(tmp_path):
    its = lines(tmp_path, lr=1e30)
    with pytest.raises(Stopped, match=r"^the loss is (inf|nan) in epoch \d: a lower lr may help"):
        its.run()
