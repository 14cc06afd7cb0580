"""The checks of plug-ins: what is right passes, and each fault is named."""

import configparser
import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tiaft_plugin import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.plugins import collect
from tiaft_plugin.testing import check_finetuner, check_model, check_probe, check_sink

ROOT = Path(__file__).parents[1]
CLASSES = ("A", "B", "C")


class Colour(nn.Module):
    """Three numbers a tile: the mean of each colour, centred."""

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, tiles):
        return tiles.float().mean(dim=(1, 2)) - 128


def model(forward):
    """Return a model in eval mode that does what a function does."""
    made = Colour()
    made.forward = forward  # type: ignore[method-assign]
    return made


def mean(tiles):
    return tiles.float().mean(dim=(1, 2)) - 128


# Models


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_a_good_model_passes(classes):
    check_model(Colour(), tile_size=8, classes=classes)


def test_a_good_function_passes():
    check_model(mean, tile_size=8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_pass(dtype):
    check_model(lambda tiles: mean(tiles).to(dtype), tile_size=8)


@pytest.mark.parametrize("classes", [(), CLASSES])
def test_a_network_brings_size_and_classes(classes):
    from tiaft_plugin.network.create import create_network

    check_model(create_network("test_efficientnet", classes, init="random", tile_size=32, mpp=0.5))


def test_it_takes_four_calls_and_leaves_randomness_alone():
    calls = []

    def forward(tiles):
        calls.append(len(tiles))
        return mean(tiles)

    state = torch.get_rng_state()
    check_model(model(forward), tile_size=8)
    assert calls == [5, 3, 2, 1]
    assert torch.equal(state, torch.get_rng_state())


def batch_norm(tiles):
    values = mean(tiles)
    return values - values.mean(dim=0)


def leaky(tiles):
    return mean(tiles) + torch.roll(mean(tiles), 1, dims=0) * 1e-3


counter = itertools.count()


def in_place(tiles):
    tiles[:] = tiles // 2
    return mean(tiles)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda tiles: mean(tiles)[:1], "returns 1 rows for 5 tiles"),
        (lambda tiles: mean(tiles)[0], r"have shape \(3,\): \(N, C\) logits or \(N, D\) features"),
        (lambda tiles: mean(tiles)[:, :, None, None], r"have shape \(5, 3, 1, 1\)"),
        (lambda tiles: mean(tiles).squeeze(), r"have shape \(3,\)"),
        (lambda tiles: mean(tiles)[:, :0], r"have shape \(5, 0\)"),
        (lambda tiles: [mean(tiles)], "returns a list, not one tensor"),
        (lambda tiles: mean(tiles).numpy(), "returns a ndarray, not one tensor"),
        (lambda tiles: mean(tiles).long(), "outputs are int64: floating-point"),
        (lambda tiles: mean(tiles).log(), "hold NaN or infinity"),
        (lambda tiles: mean(tiles) * 0 + 1, "same output for every tile"),
        (lambda tiles: mean(tiles) + next(counter), "other outputs for the same tiles when called"),
        (lambda tiles: mean(tiles) + torch.rand(len(tiles), 3), "when called again"),
        (batch_norm, "depend on the batch: 3 of 5 tiles"),
        (leaky, "depend on the batch"),
        (lambda tiles: mean(tiles).sort(dim=0).values, "depend on the batch"),
        (in_place, "changes its input in place"),
        (lambda tiles: tiles @ tiles, r"fails on uint8 tiles \(5, 8, 8, 3\): RuntimeError"),
    ],
)
def test_each_fault_of_a_model_is_named(forward, said):
    with pytest.raises(TiaftError, match=said):
        check_model(model(forward), tile_size=8)


def test_a_class_too_few():
    with pytest.raises(TiaftError, match="gives 3 numbers a tile, and 2 classes are named"):
        check_model(Colour(), tile_size=8, classes=("A", "B"))


def test_probabilities_are_no_logits():
    softmax = model(lambda tiles: mean(tiles).softmax(dim=1))
    with pytest.raises(TiaftError, match="gives probabilities: return the logits"):
        check_model(softmax, tile_size=8, classes=CLASSES)
    check_model(softmax, tile_size=8)  # as features they are fine


def test_training_mode_is_found_deep_inside():
    net = nn.Sequential(Colour(), nn.Sequential(nn.Dropout(0.5))).eval()
    check_model(net, tile_size=8)
    net[1][0].train()
    with pytest.raises(TiaftError, match=r"training mode \(1\.0\): load\(\) has to end with"):
        check_model(net, tile_size=8)


@pytest.mark.parametrize("size", [None, 0, -1, 2.5, "8"])
def test_a_tile_size_is_needed(size):
    with pytest.raises(TiaftError, match="the side of a tile in pixels is needed"):
        check_model(Colour(), tile_size=size)


@pytest.mark.parametrize("classes", ["ABC", ("A",), ("A", "B", "A"), ("A", 2, "C"), ("A", "", "B")])
def test_class_names_have_to_be_names(classes):
    with pytest.raises(TiaftError, match=r"names (is|are) needed"):
        check_model(Colour(), tile_size=8, classes=classes)


# Sinks


def write_csv(predictions, path):
    with write_atomically(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(predictions.classes)
        for block in predictions.blocks():
            for uuid, row in zip(block.ids, block.probabilities, strict=True):
                table.writerow([uuid, *row.tolist()])


@pytest.mark.parametrize("name", ["geojson", "annotationstore", "picture"])
def test_the_built_in_sinks_pass(name):
    sink = collect("register_sinks")[name]
    check_sink(sink.thing, sink.options["suffix"])


def test_a_good_sink_passes():
    check_sink(write_csv, ".csv")


def half_written(predictions, path):
    with path.open("w") as file:
        for block in predictions.blocks():
            file.write(f"{len(block.ids)}")


def greedy(predictions, path):
    all_at_once = list(predictions.blocks())
    write_csv(replace(predictions, blocks=lambda: iter(all_at_once)), path)


def littering(predictions, path):
    write_csv(predictions, path)
    path.with_suffix(".tmp").write_text("left")


def hiding(predictions, path):
    try:
        write_csv(predictions, path)
    except Exception:
        path.write_text("as far as it went")


def replacing(predictions, path):
    path.unlink(missing_ok=True)
    write_csv(predictions, path)


def other_error(predictions, path):
    try:
        write_csv(predictions, path)
    except Exception:
        raise ValueError("unrelated") from None


def rounding(predictions, path):
    for block in predictions.blocks():
        np.round(block.probabilities, 2, out=block.probabilities)
    write_csv(predictions, path)


def dated(predictions, path):
    write_csv(predictions, path)
    with path.open("a") as file:
        file.write(str(next(counter)))


def latin(predictions, path):
    write_csv(predictions, path)
    "".join(predictions.classes).encode("latin-1")


def at_least_one(predictions, path):
    next(predictions.blocks())
    write_csv(predictions, path)


def refuse_and_write(predictions, path):
    write_csv(predictions, path)
    if "\n" in "".join(predictions.classes):
        raise TiaftError("no line breaks")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda predictions, path: None, r"wrote no out\.csv \(3 tiles"),
        (half_written, r"leaves half of out\.csv where the predictions end in an error"),
        (greedy, "holds 20 blocks at once"),
        (littering, r"leaves out\.tmp beside out\.csv"),
        (hiding, "hides an error"),
        (replacing, r"destroys an older out\.csv"),
        (rounding, "ValueError: output array is read-only"),
        (dated, "other bytes for the same predictions"),
        (latin, "fails on classes .*UnicodeEncodeError"),
        (at_least_one, "fails on 0 tiles.*StopIteration"),
        (refuse_and_write, r"refuses .* and writes out\.csv"),
    ],
)
def test_each_fault_of_a_sink_is_named(write, said):
    with pytest.raises(TiaftError, match=said):
        check_sink(write, ".csv")


def test_a_format_may_hold_a_date():
    check_sink(dated, ".csv", same_bytes=False)


def test_another_error_may_say_that_predictions_broke_off():
    check_sink(other_error, ".csv")  # the cause is still in its context


@pytest.mark.parametrize("suffix", ["", "csv", "."])
def test_a_suffix_begins_with_a_dot(suffix):
    with pytest.raises(TiaftError, match="begins with a dot"):
        check_sink(write_csv, suffix)


# Probes


class Centroids:
    """How many tiles of each class are nearest to their class's mean."""

    def run(self, features, labels, groups=None, *, seed=0):
        names = np.unique(labels)
        means = np.stack([features[labels == name].mean(axis=0) for name in names])
        nearest = ((features[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
        right = names[nearest] == labels
        return {"class": names, "recall": [right[labels == name].mean() for name in names]}


def test_a_good_probe_passes():
    check_probe(Centroids())


def probe(run):
    return type("Probe", (Centroids,), {"run": run})()


def split_by_position(self, features, labels, groups=None, *, seed=0):
    return {"half": [0], "mean": [float(features[: len(features) // 2].mean())]}


def draw_globally(self, features, labels, groups=None, *, seed=0):
    return {"draw": [np.random.rand() * 0]}


def forget_the_seed(self, features, labels, groups=None, *, seed=0):
    return {"draw": [np.random.default_rng().random()]}


def scale_in_place(self, features, labels, groups=None, *, seed=0):
    features -= features.mean(axis=0)
    return {"mean": [0.0]}


def need_groups(self, features, labels, groups=None, *, seed=0):
    return {"groups": [len(set(groups))]}


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (split_by_position, "depends on the order of the rows"),
        (draw_globally, "draws from numpy's global random state"),
        (forget_the_seed, "another table for the same data and seed"),
        (scale_in_place, "the probe fails: ValueError: output array is read-only"),
        (need_groups, "the probe fails without groups: TypeError"),
        (lambda self, *a, seed=0: {"a": [1], "b": [1, 2]}, r"columns of lengths \[1, 2\]"),
        (lambda self, *a, seed=0: {}, "returns dict with columns of lengths"),
        (lambda self, *a, seed=0: 0.98, "returns float"),
        (lambda self, features, labels: {}, "the probe fails: TypeError"),
    ],
)
def test_each_fault_of_a_probe_is_named(run, said):
    with pytest.raises(TiaftError, match=said):
        check_probe(probe(run))


# Fine-tuners


class TwoStage:
    """The built-in finetuner, with a chance to spoil what it does."""

    inputs = frozenset({"tiles"})
    targets = frozenset({"classes"})

    def __call__(self, job):
        result = collect("register_finetuners")["two-stage"].thing(self.before(job))
        self.after(job, result)
        return result

    def before(self, job):
        return job

    def after(self, job, result):
        pass


def rewrite(file, change):
    """Change a model file's network, in place."""
    from tiaft_plugin.network import load_model, save_model

    net = load_model(file)
    change(net)
    save_model(net, file, overwrite=True)


class MovesBatchNorm(TwoStage):
    def after(self, job, result):
        def change(net):
            next(m for m in net.part_a.modules() if hasattr(m, "running_mean")).running_mean += 1

        rewrite(result.stage1, change)


class MovesPartB(TwoStage):
    def after(self, job, result):
        rewrite(result.model, lambda net: net.part_b.classifier.bias.data.add_(1))


class SwapsClasses(TwoStage):
    def after(self, job, result):
        def change(net):
            net.card = replace(net.card, classes=net.card.classes[::-1])

        rewrite(result.model, change)


class ForgetsSeed(TwoStage):
    def before(self, job):
        return replace(job, seed=next(counter))


class Overwrites(TwoStage):
    def before(self, job):
        return replace(job, overwrite=True)


class TrainsNothing(TwoStage):
    def before(self, job):
        return replace(job, epochs=(1, 0))


class SpoilsTiles(TwoStage):
    def after(self, job, result):
        tile = next(job.train.root.rglob("*.png"))
        tile.write_bytes(tile.read_bytes() + b" ")


class TakesAnything(TwoStage):
    inputs = frozenset({"pictures"})


class TakesBags(TwoStage):
    inputs = frozenset({"bags"})


class ReturnsPath(TwoStage):
    def __call__(self, job):
        return super().__call__(job).model


def test_the_built_in_finetuner_passes():
    check_finetuner(TwoStage())


@pytest.mark.parametrize(
    ("finetuner", "said"),
    [
        (MovesBatchNorm, r"frozen is not frozen: Part A moves in stage 1 \(part_a.*running_mean"),
        (MovesPartB, r"frozen is not frozen: Part B moves after stage 1 \(part_b.classifier.bias"),
        (SwapsClasses, r"model.safetensors is a model of \(\('TUM', 'NORM'\), 32, 0.5\)"),
        (ForgetsSeed, "another model file for the same job and seed"),
        (Overwrites, "overwrites a finished run without being asked"),
        (TrainsNothing, "does not train Part A"),
        (SpoilsTiles, "changes the tiles that it trains on"),
        (TakesAnything, r"inputs are \['pictures'\]: a set of bags, slides, tiles"),
        (TakesBags, "can check finetuners of tiles with classes only"),
        (ReturnsPath, "returns PosixPath, not a FinetuneResult"),
    ],
)
def test_each_fault_of_a_finetuner_is_named(finetuner, said):
    with pytest.raises(TiaftError, match=said):
        check_finetuner(finetuner())


# The house


def test_every_package_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "tiaft_plugin").rglob("__init__.py")
    }
    assert found <= set(listed)
