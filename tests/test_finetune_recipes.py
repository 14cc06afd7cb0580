"""Recipes: their numbers, their optimisers and schedules, and what a job may change of them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_finetune import job_on, make_tiles, part, rows_of, same

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.finetune.data import Order
from tiaft_plugin.finetune.losses import class_weights, losses_of, weights_of
from tiaft_plugin.finetune.optimizers import Driver
from tiaft_plugin.finetune.recipes import RECIPES, recipe_of
from tiaft_plugin.finetune.stages import run_stages
from tiaft_plugin.network import load_model, read_card
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
    return job_on(sets, tmp_path / "run")


def bare(job, recipe="ftx2048", **changes):
    """Return a job in which a recipe has its own numbers."""
    none = dict.fromkeys(("hidden", "epochs", "lrs", "batch_size"))
    return replace(job, recipe=recipe, **(none | changes))


def test_the_papers_recipe_is_the_default(job):
    recipe = recipe_of(bare(job))
    assert job.recipe == recipe.name == "ftx2048"
    assert [(s.trains, s.epochs, s.lr) for s in recipe.stages] == [
        ("part_b", 20, 4e-4), ("part_a", 10, 5e-5)
    ]  # fmt: skip
    assert (recipe.backbone, recipe.hidden, recipe.batch_size) == ("legacy_xception", (2048,), 128)
    assert (recipe.optimizer, recipe.schedule, recipe.augment) == ("adam", "constant", ())


def test_grazianis_and_pengs_numbers(job):
    graziani, peng = (recipe_of(bare(job, name)) for name in ("graziani", "peng"))
    assert [(s.trains, s.epochs, s.lr) for s in graziani.stages] == [("all", 30, 1e-4)]
    assert (graziani.optimizer, graziani.decay, graziani.momentum) == ("sgd", 1e-6, 0.9)
    assert graziani.nesterov and graziani.backbone == "inception_v3"
    assert graziani.augment == ("flips", "hue", "brightness")
    assert [(s.trains, s.lr) for s in peng.stages] == [("all", 1e-4)]
    assert (peng.batch_size, peng.schedule, peng.keep) == (64, "plateau", "best")


def test_every_number_can_be_set(job):
    settings = {"momentum": 0.5, "optimizer": "sgd", "weight_decay": 1, "patience": 2}
    recipe = recipe_of(replace(job, options=settings, keep="best", balance="sampling"))
    assert (recipe.momentum, recipe.optimizer, recipe.weight_decay) == (0.5, "sgd", 1.0)
    assert (recipe.keep, recipe.balance, recipe.hidden) == ("best", "sampling", (8,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "other"}, "there is no recipe other: there is ftx2048, graziani, peng"),
        ({"options": {"momentum": "much"}}, "setting momentum is 'much': a number is expected"),
        ({"options": {"nesterov": 1}}, "setting nesterov is 1: true or false is expected"),
        ({"options": {"patience": 2.5}}, "setting patience is 2.5: a whole number is expected"),
        ({"options": {"schedule": "cosine"}}, "schedule is 'cosine': one of constant, inverse"),
        ({"options": {"momentum": -0.1}}, "setting momentum is -0.1: 0 or more"),
        ({"options": {"nesterov": True}}, "setting nesterov needs a momentum above 0"),
        ({"options": {"schedule": "plateau", "factor": 1.0}}, "factor is 1.0: between 0 and 1"),
        ({"recipe": "peng"}, "recipe peng has 1 stage: give 1 number$"),
        ({"lrs": (0.1, 0.1, 0.1)}, "recipe ftx2048 has 2 stages: give 2 numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(job, changes, message):
    with pytest.raises(TiaftError, match=message):
        recipe_of(replace(job, **changes))


def test_inverse_time_is_keras_decay(job):
    recipe = replace(RECIPES["graziani"], decay=0.1)
    weight = torch.nn.Parameter(torch.ones(1))
    driver = Driver(recipe, recipe.stages[0], [weight], 10)
    seen = []
    for _ in range(4):
        seen.append(driver.lr)
        driver.optimizer.step()
        driver.step()
    assert seen == pytest.approx([1e-4 / (1 + 0.1 * step) for step in range(4)])
    assert (driver.optimizer.defaults["nesterov"], driver.optimizer.defaults["momentum"]) == (
        True, 0.9
    )  # fmt: skip


def test_a_plateau_halves_and_then_ends_the_stage(job):
    watching = {"schedule": "plateau", "patience": 1, "min_lr": 1e-6, "optimizer": "sgd"}
    slow = replace(job, lrs=(2.1e-6, 1e-3), epochs=(40, 0), options=watching)  # the loss stays
    result = run_stages(slow)
    rows = [row for row in rows_of(result.metrics) if row["split"] == "val"]
    rates = [float(row["lr"]) for row in rows if row["stage"] == "1"]
    assert rates == pytest.approx([2.1e-6] * 3 + [1.05e-6] * 2)


def test_named_modules_of_part_a_stay_frozen(job):
    """BatchNorm statistics and all; what is above them trains."""
    one = replace(job, recipe="graziani", epochs=(1,), lrs=(1e-2,), augment=())
    result = run_stages(replace(one, options={"frozen": "conv_stem, bn1,blocks.0"}))
    init = run_stages(replace(one, out=job.out.parent / "none", epochs=(0,)))
    after, before = (part(load_model(r.model).state_dict(), "part_a") for r in (result, init))
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    bottom = ("part_a.conv_stem.", "part_a.bn1.", "part_a.blocks.0.")
    assert moved and not any(key.startswith(bottom) for key in moved)
    assert moved | {key for key in after if key.startswith(bottom)} == set(after)
    assert read_card(result.model).training["frozen"] == "conv_stem, bn1,blocks.0"


def test_a_module_that_there_is_not_cannot_be_frozen(job):
    message = "setting frozen: test_efficientnet has no module layer9: it has conv_stem, bn1, "
    with pytest.raises(TiaftError, match=message):
        run_stages(replace(job, options={"frozen": "bn1,layer9"}))
    assert not job.out.exists()


def test_part_a_may_learn_more_slowly(job):
    """Adam's first step is the learning rate, whatever the gradient."""
    one = replace(job, recipe="graziani", epochs=(1,), lrs=(1e-3,), augment=(), batch_size=18)
    one = replace(one, options={"part_a_lr": 0.1, "optimizer": "adam", "schedule": "constant"})
    init = run_stages(replace(one, out=job.out.parent / "none", epochs=(0,)))
    after, before = (load_model(r.model).state_dict() for r in (run_stages(one), init))
    steps = {key: (after[key] - before[key]).abs().max().item() for key in after if "weight" in key}
    for name, step in (("part_a.", 1e-4), ("part_b.", 1e-3)):
        found = [value for key, value in steps.items() if key.startswith(name)]
        assert max(found) == pytest.approx(step, rel=0.05)


def test_one_stage_trains_all_and_leaves_one_model(job):
    one = replace(job, recipe="graziani", epochs=(2,), lrs=(1e-2,), augment=())
    result = run_stages(one)
    assert result.stage1 is None
    assert not (job.out / "stage1.safetensors").exists()
    init = run_stages(replace(one, out=job.out.parent / "none", epochs=(0,)))
    after, before = (load_model(run.model).state_dict() for run in (result, init))
    for name in ("part_a", "part_b"):
        assert not same(part(after, name), part(before, name))
    training = read_card(result.model).training
    assert (training["recipe"], training["stages"][0]["optimizer"]) == ("graziani", "SGD")


def test_the_best_epoch_on_validation_tiles_is_kept(job, monkeypatch):
    """Half-way, training begins to climb, so that the last epoch is never the best."""

    class Climbing:
        @hookimpl
        def choose_optimizer(self, stage, parameters, lr, steps):
            optimizer = torch.optim.Adam(parameters, lr=lr)
            rate = lambda step: 1.0 if step < steps / 2 else -100.0  # noqa: E731
            return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    plugin_manager().register(Climbing(), "climbing")
    try:
        result = run_stages(replace(job, keep="best", epochs=(4, 4), test=None))
    finally:
        plugin_manager().unregister(name="climbing")
    rows = [r for r in rows_of(result.metrics) if (r["stage"], r["split"]) == ("2", "val")]
    losses = [float(row["loss"]) for row in rows]
    kept = read_card(result.model).training["stages"][1]["kept_epoch"]
    assert kept == 1 + int(np.argmin(losses)) < 4
    assert result.last["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_what_watches_validation_tiles_needs_them(job):
    with pytest.raises(TiaftError, match="recipe ftx2048 watches validation tiles, and there are"):
        run_stages(replace(job, val=None, keep="best"))


def test_a_test_set_chooses_nothing_and_is_measured_once(job, sets, tmp_path):
    test = read_tileset(make_tiles(tmp_path / "test", 4, seed=2), mpp=0.5)
    without = run_stages(replace(job, keep="best"))
    result = run_stages(replace(job, keep="best", test=test, out=tmp_path / "tested"))
    models = [load_model(run.model).state_dict() for run in (without, result)]
    assert same(*models)
    assert {row["split"] for row in rows_of(result.metrics)} == {"train", "val"}
    net, right = load_model(result.model), 0
    from PIL import Image

    tiles = np.stack([np.array(Image.open(file)) for file in test.files])
    with torch.inference_mode():
        right = (net(tiles).argmax(1).numpy() == np.array(test.targets)).mean()
    assert result.last["accuracy"] == pytest.approx(right)


def test_balanced_sampling_draws_each_class_as_often():
    weights = class_weights({"A": 90, "B": 10})
    targets = np.array([0] * 90 + [1] * 10)
    chances = weights[targets] / weights[targets].sum()
    order = Order(100, 10, (1, 2), chances=chances)
    drawn = []
    for epoch in range(40):
        order.epoch = epoch
        drawn += [targets[index] for batch in order for _, index in batch]
    assert len(drawn) == 4000
    assert 0.46 < np.mean(drawn) < 0.54


def test_class_weights_are_scikit_learns():
    from sklearn.utils.class_weight import compute_class_weight

    targets = [0] * 7 + [1] * 2 + [2]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert class_weights({"A": 7, "B": 2, "C": 1}) == pytest.approx(expected)


def test_weighted_losses_make_classes_count_the_same(job, tmp_path):
    logits, targets = torch.zeros(10, 2), torch.tensor([0] * 8 + [1] * 2)
    weights = torch.tensor(class_weights({"A": 8, "B": 2}))
    losses = losses_of(logits, targets) * weights_of(targets, weights)
    assert losses[:8].sum() == pytest.approx(float(losses[8:].sum()))
    results = [
        run_stages(replace(job, balance=balance, out=tmp_path / balance))
        for balance in ("none", "weights")  # as many tiles of each: weights change nothing
    ]
    assert same(*(load_model(result.model).state_dict() for result in results))


def test_several_labels_have_losses_of_their_own():
    logits, targets = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    expected = torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets.float())
    torch.testing.assert_close(losses_of(logits, targets).mean(), expected)
    weights = torch.tensor([1.0, 2.0, 4.0])
    several = torch.tensor([[1, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(weights_of(several, weights), torch.tensor([2.5, 1.0]))
