"""The checks of plug-ins: what is right passes, and each fault is named."""

import configparser
import csv
import itertools
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import MonkeyPatch
from torch import nn

from tiaft_plugin import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.finetune.interface import FinetuneResult
from tiaft_plugin.network import create_network, save_model
from tiaft_plugin.plugins import call_hook, collect
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


class Standard:
    """What a good probe does with features: standardise them by the training rows."""

    kind = "classes"
    unit = "tile"
    settings = MappingProxyType({"distance": "euclidean"})

    def fit(self, features, targets, groups, seed):
        mean, sd = features.mean(axis=0), features.std(axis=0)
        sd[features.min(axis=0) == features.max(axis=0)] = 1
        learnt = self.learn((features - mean) / sd, targets)
        return lambda rows: self.score((rows - mean) / sd, learnt)


class Centroids(Standard):
    """Which class's mean is nearest."""

    def learn(self, rows, targets):
        names = np.unique(targets)
        return np.stack([rows[targets == name].mean(axis=0) for name in names])

    def score(self, rows, means):
        return -((rows[:, None] - means) ** 2).sum(axis=2)


class Least(Standard):
    """Least squares."""

    kind = "numbers"
    unit = "patient"

    def learn(self, rows, targets):
        return targets.mean(axis=0), np.linalg.pinv(rows, rcond=1e-6) @ targets

    def score(self, rows, learnt):
        return learnt[0] + rows @ learnt[1]


class Mutated(Least):
    """Least squares of 0 and 1."""

    kind = "binary"


class Variants(Mutated):
    variants = ("sharp", "nothing")

    def score(self, rows, learnt):
        sharp = super().score(rows, learnt)
        return np.stack([sharp, np.zeros(len(rows))], axis=1)


@pytest.mark.parametrize("good", [Centroids, Least, Mutated, Variants])
def test_a_good_probe_passes(good):
    check_probe(good())


def spoiled(good, **change):
    """Return a good probe with some of it changed."""
    return type("Spoiled", (good,), change)()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "survival"}, "kind is 'survival': one of classes, numbers, binary is needed"),
        ({"unit": None}, "unit is None: one of tile, patient, slide is needed"),
        ({"settings": None}, "settings are None: a dict is needed, or an empty one"),
        ({"settings": [("a", 1)]}, r"settings are \[\('a', 1\)\]: a dict is needed"),
        ({"settings": {"rng": np.int64(1)}}, "settings cannot be written as JSON: .*int64"),
        ({"settings": {"a": float("nan")}}, "settings cannot be written as JSON: Out of range"),
        ({"title": " "}, "title is ' ': some text is needed, or no title"),
        ({"fit": None}, r"no method fit\(features, targets, groups, seed\)"),
        ({"variants": ("a",)}, "has variants and predicts classes: only 'binary' has them"),
        ({"variants": "min"}, "variants are 'min': a tuple of names is needed"),
        ({"variants": 3}, "variants are 3: a tuple of names is needed"),
        ({"variants": ("a", "a")}, r"variants are \('a', 'a'\): each name once"),
    ],
)
def test_what_a_probe_says_of_itself(change, said):
    with pytest.raises(TiaftError, match=said):
        check_probe(spoiled(Centroids, **change))


def draw_globally(self, rows, targets):
    np.random.rand()
    return Centroids.learn(self, rows, targets)


def seed_globally(self, rows, means):
    np.random.seed(0)
    return Centroids.score(self, rows, means)


def forget_the_seed(self, rows, targets):
    means = Centroids.learn(self, rows, targets)
    return means + 1e-9 * np.random.default_rng().normal(size=means.shape)


def fit_in_place(self, features, targets, groups, seed):
    features -= features.mean(axis=0)
    return Centroids.fit(self, features, targets, groups, seed)


def score_in_place(self, features, targets, groups, seed):
    predict = Centroids.fit(self, features, targets, groups, seed)

    def predict_in_place(rows):
        rows *= 1
        return predict(rows)

    return predict_in_place


def keep_in_the_probe(self, features, targets, groups, seed):
    self.predict = Centroids.fit(self, features, targets, groups, seed)
    return lambda rows: self.predict(rows)


def two_at_most(self, rows, means):
    scores = Centroids.score(self, rows, means)
    return scores[:, 1] - scores[:, 0] if len(means) == 2 else scores


def other_order(self, rows, means):
    return Centroids.score(self, rows, means)[:, ::-1]


def by_the_batch(self, rows, means):
    return Centroids.score(self, rows - rows.mean(axis=0), means)


def as_they_come(self, features, targets, groups, seed):
    means = Centroids.learn(self, features, targets)
    return lambda rows: self.score(rows, means)


def divide_by_zero(self, features, targets, groups, seed):
    mean, sd = features.mean(axis=0), features[:1] * 0
    means = self.learn(features - mean, targets)
    with np.errstate(all="ignore"):
        return lambda rows: self.score((rows - mean) / sd, means)


def many_rows(self, rows, targets):
    if len(rows) < 20:
        raise ValueError("too few rows")
    return Centroids.learn(self, rows, targets)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"learn": draw_globally},
            r"touches global randomness: use numpy.random.default_rng\(seed",
        ),
        ({"score": seed_globally}, "touches global randomness"),
        ({"learn": forget_the_seed}, "other scores for the same rows and seed"),
        ({"fit": fit_in_place}, "the probe's fit writes to its inputs: copy them first"),
        ({"fit": score_in_place}, "prediction of 60 rows writes to its inputs"),
        ({"fit": keep_in_the_probe}, "later fits change what earlier ones predict"),
        ({"fit": lambda self, features, targets: None}, r"fit fails \(90 rows, 3 cl.*TypeError"),
        ({"fit": lambda self, *data: self}, "fit returns Spoiled: a function of features"),
        ({"learn": many_rows}, r"fit fails \(12 rows, 3 classes\): ValueError: too few rows"),
        ({"score": lambda self, rows, _: 1 / 0}, r"prediction of 60 rows fails \(90 rows"),
        ({"score": lambda self, rows, _: rows.tolist()}, "scores are list: a numpy array of floa"),
        ({"score": lambda self, rows, _: (rows > 0) + 0}, "scores are int64: a numpy array of fl"),
        ({"score": two_at_most}, r"shape \(60,\) for 60 rows .*\(60 rows, 2 classes\): \(60, 2\)"),
        ({"score": lambda self, rows, _: rows}, r"shape \(60, 8\) for 60 rows .*: \(60, 3\)"),
        ({"fit": divide_by_zero}, "hold NaN or infinity .* one feature is constant"),
        ({"score": by_the_batch}, "scores of a row depend on the rows predicted with it"),
        ({"score": other_order}, r"learns too little: accuracy .* order of np.unique\(targets\)"),
        ({"fit": as_they_come}, "learns too little: .* are features standardised inside"),
    ],
)
def test_each_fault_of_a_probe_is_named(change, said):
    with pytest.raises(TiaftError, match=said):
        check_probe(spoiled(Centroids, **change))


def one_gene_flat(self, rows, learnt):
    return Least.score(self, rows, learnt).squeeze()


@pytest.mark.parametrize(
    ("good", "score", "said"),
    [
        (Least, one_gene_flat, r"shape \(60,\) .*1 numbers a row\): \(60, 1\) is needed"),
        (Least, lambda *_: -Least.score(*_), "too little: correlation -.* order of the targets'"),
        (Least, lambda *_: 0 * Least.score(*_), "too little: correlation 0.00 where 0.00 is"),
        (Mutated, lambda *_: -Mutated.score(*_), "too little: AUROC 0.* larger for 1 than for 0"),
        (Mutated, lambda *_: Mutated.score(*_)[:, None], r"shape \(60, 1\) .*: \(60,\) is needed"),
        (Variants, lambda *_: Mutated.score(*_), r"shape \(60,\) .*: \(60, 2\) is .* a variant"),
    ],
)
def test_faults_of_probes_of_numbers_and_of_0_and_1(good, score, said):
    with pytest.raises(TiaftError, match=said):
        check_probe(spoiled(good, score=score))


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
        tile = next(job.test.root.rglob("*.png"))
        tile.write_bytes(tile.read_bytes() + b" ")


class TakesAnything(TwoStage):
    inputs = frozenset({"pictures"})


class TakesBags(TwoStage):
    inputs = frozenset({"bags"})


class ReturnsPath(TwoStage):
    def __call__(self, job):
        return super().__call__(job).model


@pytest.mark.usefixtures("no_figures")
def test_the_built_in_finetuner_passes():
    check_finetuner(TwoStage(), epochs=(1, 1))


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    ("finetuner", "said"),
    [
        (MovesBatchNorm, r"frozen is not frozen: Part A moves in stage 1 \(part_a.*running_mean"),
        (MovesPartB, r"frozen is not frozen: Part B moves after stage 1 \(part_b.classifier.bias"),
        (SwapsClasses, r"model.safetensors is a model of \(\('TUM', 'NORM'\), 32, 0.5\)"),
        (ForgetsSeed, "another model file for the same job and seed"),
        (Overwrites, "overwrites a finished run without being asked"),
        (TrainsNothing, "does not train Part A"),
        (SpoilsTiles, "changes the tiles that it is given"),
        (TakesAnything, r"inputs are \['pictures'\]: a set of bags, slides, tiles"),
        (TakesBags, "can check finetuners of tiles with classes only"),
        (ReturnsPath, "returns PosixPath, not a FinetuneResult"),
    ],
)
def test_each_fault_of_a_finetuner_is_named(finetuner, said):
    with pytest.raises(TiaftError, match=said):
        check_finetuner(finetuner(), epochs=(1, 1))


class OneStage:
    """A finetuner of a plug-in: two steps of plain SGD with all weights, and no checkpoints."""

    inputs = frozenset({"tiles"})
    targets = frozenset({"classes"})

    def __call__(self, job):
        model, table, page = (
            job.out / name for name in ("model.safetensors", "metrics.csv", "report.html")
        )
        if model.exists() and not job.overwrite:
            raise TiaftError(f"{model} exists already")
        net = self.network(job)
        tiles = np.stack([np.array(Image.open(file)) for file in self.files(job)])
        targets = torch.tensor(job.train.targets * 2)[: len(tiles)]
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        job.out.mkdir(parents=True, exist_ok=True)
        for epoch in (1, 2):
            net.train()
            nn.functional.cross_entropy(net(tiles), targets).backward()
            optimizer.step()
            self.epoch_ends(job, net)
            call_hook("epoch_ended", stage=1, epoch=epoch, metrics={})
        save_model(net.eval(), model, overwrite=True)
        table.touch()
        page.touch()
        return FinetuneResult(model, table, page)

    def network(self, job):
        return create_network(
            job.backbone,
            job.train.classes,
            init=job.init,
            tile_size=job.train.tile_size,
            mpp=job.train.mpp,
            hidden=job.hidden or (8,),
            seed=job.seed,
        )

    def files(self, job):
        return job.train.files

    def epoch_ends(self, job, net):
        pass


class CallsNoHook(OneStage):
    def __call__(self, job):
        with MonkeyPatch.context() as patch:
            patch.setitem(globals(), "call_hook", lambda *_, **__: None)
            return super().__call__(job)


class StartsElsewhere(OneStage):
    def network(self, job):
        return super().network(replace(job, backbone="test_resnet", init="random"))


class DrawsGlobally(OneStage):
    def epoch_ends(self, job, net):
        net.part_b.classifier.bias.data += 1e-3 * torch.rand(len(net.card.classes))


class ChoosesByTest(OneStage):
    def files(self, job):
        return [*job.train.files, *(job.test.files if job.test else ())]


class NeedsVal(OneStage):
    def files(self, job):
        return super().files(job) if job.val.files else ()


class HidesInterrupt(OneStage):
    def __call__(self, job):
        try:
            return super().__call__(job)
        except KeyboardInterrupt:
            return None


class WritesEarly(OneStage):
    def epoch_ends(self, job, net):
        save_model(net, job.out / "model.safetensors", overwrite=True)


class GoesOnAnyhow(OneStage):
    """It remembers that it was there, and not where it was."""

    def network(self, job):
        net = super().network(job)
        if job.out.exists():
            net.part_b.classifier.bias.data += 1
        return net


class WantsNewFolder(OneStage):
    def files(self, job):
        if job.out.exists():
            raise TiaftError("the folder is there already")
        return super().files(job)


@pytest.mark.parametrize("good", [OneStage, CallsNoHook])
def test_a_finetuner_of_one_stage_passes(good):
    check_finetuner(good())


@pytest.mark.parametrize(
    ("finetuner", "said"),
    [
        (StartsElsewhere, r"the model has no part_a.*: it is not the network of job.init"),
        (DrawsGlobally, "another model file for the same job and seed"),
        (ChoosesByTest, "test tiles change the model: they may be measured, and choose nothing"),
        (NeedsVal, "the finetuner fails: AttributeError: 'NoneType' object has no attribute 'fi"),
        (HidesInterrupt, "hides a KeyboardInterrupt"),
        (WritesEarly, "an interrupted run leaves model.safetensors"),
        (GoesOnAnyhow, "another model file after an interruption"),
        (WantsNewFolder, "does not go on where it was interrupted: the folder is there already"),
    ],
)
def test_each_fault_of_a_finetuner_of_one_stage_is_named(finetuner, said):
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
