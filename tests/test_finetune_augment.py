"""Augmentations: what each may do to a tile, who registers them, and whose fault it is."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy.stats import chisquare, kstest

from tiaft_plugin import TiaftError, hookimpl, hookspecs, plugins
from tiaft_plugin.errors import Stopped
from tiaft_plugin.finetune import builtin
from tiaft_plugin.finetune.augment import (
    BUILT_IN,
    Colour,
    Crop,
    Flips,
    Hed,
    Rotations,
    augmentation_of,
    compose,
)
from tiaft_plugin.plugins import Manager
from tiaft_plugin.tiles.colour import colour_features

SIDE = 48


@pytest.fixture(scope="module")
def tissue():
    from skimage.data import immunohistochemistry

    return np.ascontiguousarray(immunohistochemistry()[100 : 100 + SIDE, 100 : 100 + SIDE])


def rng(*seed):
    return np.random.default_rng(seed)


def ramp(height=SIDE, width=SIDE):
    """A tile whose pixels all differ: red is the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, 0 * rows + 90], axis=2).astype(np.uint8)


TILES = st.integers(1, 20).flatmap(
    lambda side: (
        arrays(np.uint8, (side, side, 3))
        | st.tuples(*[st.integers(0, 255)] * 3).map(lambda c: np.full((side, side, 3), c, np.uint8))
    )
)


@pytest.mark.parametrize("name", [*BUILT_IN, "all"])
@given(tile=TILES | arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
       seed=st.integers(0, 2**32))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_tile_keeps_shape_and_dtype_and_its_seed_decides(name, tile, seed):
    augment = compose(list(BUILT_IN)) if name == "all" else BUILT_IN[name]
    tile.setflags(write=False)
    before = tile.copy()
    np.random.seed(seed % 7)  # whoever draws from it makes two tiles differ
    first = augment(tile, rng(seed))
    np.testing.assert_array_equal(tile, before)
    assert first.shape == tile.shape and first.dtype == np.uint8
    again = pickle.loads(pickle.dumps(augment))(before, rng(seed))
    np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("name", ["flips", "mirror", "rotations", "crop"])
@given(colour=st.tuples(*[st.integers(0, 255)] * 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_geometry_leaves_one_colour_as_it_is(name, colour, seed):
    tile = np.full((9, 9, 3), colour, np.uint8)
    np.testing.assert_array_equal(BUILT_IN[name](tile, rng(seed)), tile)


@pytest.mark.parametrize(
    ("augment", "variants"),
    [
        (Flips(), [lambda t: t, np.fliplr, np.flipud, lambda t: t[::-1, ::-1]]),
        (Flips(horizontal=True), [lambda t: t, np.fliplr]),
        (Rotations(), [lambda t, n=n: np.rot90(t, n) for n in range(4)]),
    ],
)
def test_each_variant_is_as_frequent_as_the_others(augment, variants):
    tile, count = ramp(), {}
    for seed in range(800):
        found = augment(tile, rng(seed)).tobytes()
        count[found] = count.get(found, 0) + 1
    assert set(count) == {np.ascontiguousarray(variant(tile)).tobytes() for variant in variants}
    assert chisquare(list(count.values())).pvalue > 0.001


def test_a_tile_that_is_not_square_turns_by_halves():
    tile = ramp(20, 30)
    found = {Rotations()(tile, rng(seed)).tobytes() for seed in range(30)}
    assert found == {tile.tobytes(), np.ascontiguousarray(tile[::-1, ::-1]).tobytes()}


def test_crop_draws_and_resizes_as_torchvision_does():
    """Of 400 crops each, areas, ratios and places have one distribution."""
    from torchvision.transforms.v2 import RandomResizedCrop
    from torchvision.transforms.v2.functional import resized_crop

    class Fixed:
        """A generator that gives what it was given."""

        def __init__(self, *values):
            self.values = list(values)

        def uniform(self, *_):
            return self.values.pop(0)

        integers = uniform

    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = Crop()(tile, Fixed(0.25, np.log(1.2), 10, 20))
    h, w = round(64 * np.sqrt(0.25 / 1.2)), round(64 * np.sqrt(0.25 * 1.2))
    tensor = torch.from_numpy(tile).permute(2, 0, 1)
    expected = resized_crop(tensor, 10, 20, h, w, [64, 64]).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1

    # Red and green of a ramp tell which part was taken.
    tile = ramp(200, 200)
    mine = [Crop()(tile, rng(seed)) for seed in range(400)]
    spans = [np.ptp(t[..., k].astype(int), axis=(0, 1)) for t in mine for k in (0, 1)]
    mine = np.reshape(spans, (400, 2)) + 1.0  # heights and widths
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = RandomResizedCrop(200)
        drawn = [theirs.make_params([torch.zeros(3, 200, 200)]) for _ in range(400)]
    theirs = np.array([[d["height"], d["width"]] for d in drawn], dtype=float)
    for measure in (lambda a: a.prod(axis=1), lambda a: a[:, 1] / a[:, 0]):
        assert kstest(measure(mine), measure(theirs)).pvalue > 0.001
    assert 0.07 < mine.prod(axis=1).min() / 200**2 < 0.12
    assert mine.prod(axis=1).max() / 200**2 > 0.9


@pytest.mark.parametrize(
    ("augment", "theirs"),
    [
        (Colour(brightness=0.2), "adjust_brightness"),
        (Colour(contrast=0.2), "adjust_contrast"),
        (Colour(saturation=0.2), "adjust_saturation"),
    ],
)
def test_colour_is_torchvision_s(tissue, augment, theirs):
    from torchvision.transforms.v2 import functional

    tensor = torch.from_numpy(tissue).permute(2, 0, 1)
    for seed in range(20):
        factors = 1 + rng(seed).uniform(-1, 1, 3) * (
            augment.brightness,
            augment.contrast,
            augment.saturation,
        )
        (factor,) = factors[factors != 1]
        expected = getattr(functional, theirs)(tensor, factor).permute(1, 2, 0).numpy()
        assert np.abs(augment(tissue, rng(seed)).astype(int) - expected).max() <= 2


def test_hue_turns_colours_and_keeps_light(tissue):
    luma = lambda tile: tile @ [0.299, 0.587, 0.114]  # noqa: E731
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    turned = []
    for seed in range(40):
        found = BUILT_IN["hue"](tissue, rng(seed))
        assert np.abs(luma(found) - luma(tissue)).mean() < 1
        assert np.abs(BUILT_IN["hue"](grey, rng(seed)).astype(int) - grey).max() <= 1
        turned.append(found[..., 0].mean() - tissue[..., 0].mean())
    assert min(turned) < -1 and max(turned) > 1


def test_hed_is_scikit_image_s_stains(tissue):
    from skimage.color import hed2rgb, rgb2hed

    assert np.array_equal(Hed(0, 0)(tissue, rng(0)), tissue)  # nothing is lost on the way
    # Some of each stain everywhere, since theirs drops negative ones.
    tile = 255 * hed2rgb(rng(0).uniform(0.005, 0.08, (SIDE, SIDE, 3)))
    tile = np.rint(tile).astype(np.uint8)
    for seed in range(20):
        draw = rng(seed)
        scales, shifts = 1 + draw.uniform(-0.2, 0.2, 3), draw.uniform(-0.1, 0.1, 3)
        expected = 255 * hed2rgb(rgb2hed(tile) * scales - shifts / np.log(1e-6))
        found = Hed(scale=0.2, shift=0.1)(tile, rng(seed))
        assert np.abs(found - expected).max() < 2

    glass = np.full((8, 8, 3), 245, np.uint8)
    for seed in range(200):
        assert np.abs(BUILT_IN["hed"](glass, rng(seed)).astype(int) - 245).max() < 25


def test_tissue_still_looks_like_tissue(data):
    """Whatever colours do, a real tile stays nearer to itself than other classes' mean is."""
    tiles = {}
    for folder in ("01_TUMOR", "02_STROMA", "07_ADIPOSE"):
        files = sorted((data / "kather2016" / folder).iterdir())[:6]
        tiles[folder] = np.stack([np.array(Image.open(f).convert("RGB")) for f in files])
    means = {folder: colour_features(t).mean(axis=0) for folder, t in tiles.items()}
    for name in ("colour", "hue", "brightness", "hed"):
        nearest = []
        for folder, some in tiles.items():
            changed = np.stack([BUILT_IN[name](t, rng(i, k)) for i, t in enumerate(some)
                                for k in range(5)])  # fmt: skip
            for features in colour_features(changed):
                distance = {f: np.abs(features - mean).sum() for f, mean in means.items()}
                nearest.append(min(distance, key=distance.get) == folder)
        assert np.mean(nearest) > 0.8, name


# Names and plug-ins


@pytest.fixture
def manager(monkeypatch) -> Manager:
    """A manager with tiaft's own augmentations alone."""
    manager = Manager()
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name="finetune")
    monkeypatch.setattr(plugins, "plugin_manager", lambda: manager)
    return manager


def add(manager, name, **functions):
    plugin = type(name, (), {h: staticmethod(hookimpl(f)) for h, f in functions.items()})()
    manager.register(plugin, name=name)


def registering(name, augment):
    return lambda register: register(name, augment)


def darken(tile, rng):
    tile //= 2  # in place, which is a plug-in's to do
    return tile


def test_names_are_done_in_order(manager, tissue):
    add(manager, "mine", register_augmentations=registering("darken", darken))
    found = compose(["darken", "hed"])(tissue.copy(), rng(5))
    np.testing.assert_array_equal(found, BUILT_IN["hed"](tissue // 2, rng(5)))
    other = compose(["hed", "darken"])(tissue.copy(), rng(5))
    np.testing.assert_array_equal(other, BUILT_IN["hed"](tissue, rng(5)) // 2)
    assert compose([]) is None


def test_an_unknown_name_is_refused_with_those_there_are(manager):
    with pytest.raises(
        TiaftError,
        match="no augmentation blur, noise: there is brightness, colour, crop, flips, hed, hue, "
        "mirror, rotations$",
    ):
        compose(["flips", "blur", "noise"])


def test_two_plugins_cannot_take_one_name(manager):
    add(manager, "mine", register_augmentations=registering("hed", darken))
    with pytest.raises(TiaftError, match="finetune and mine both register 'hed'"):
        compose(["flips"])


def fail(tile, rng):
    raise ValueError("cannot do\nthat")


def shrink(tile, rng):
    return tile[1:]


def to_float(tile, rng):
    return tile / 255


def forget(tile, rng):
    pass


FAULTS = [
    (fail, "failed: ValueError: cannot do"),
    (shrink, r"made uint8 \(47, 48, 3\) of a uint8 tile \(48, 48, 3\): it must keep"),
    (to_float, r"made float64 \(48, 48, 3\) of a uint8 tile"),
    (forget, "made NoneType of a uint8 tile"),
]


@pytest.mark.parametrize(("augment", "said"), FAULTS)
def test_a_plugin_s_augmentation_that_fails_is_named(manager, tissue, augment, said):
    add(manager, "mine", register_augmentations=registering("odd", augment))
    steps = pickle.loads(pickle.dumps(compose(["flips", "odd", "hed"])))
    with pytest.raises(Stopped, match=f"^augmentation odd of plug-in mine {said}"):
        steps(tissue, rng(0))


@pytest.mark.parametrize(("augment", "said"), FAULTS)
def test_so_is_what_a_plugin_chose(manager, tissue, augment, said):
    add(manager, "mine", choose_augmentation=lambda stage: augment if stage == 2 else None)
    chosen = pickle.loads(pickle.dumps(augmentation_of(2, 48, ["hed"])))
    with pytest.raises(Stopped, match=f"^choose_augmentation's function of plug-in mine {said}"):
        chosen(tissue, rng(0))


def test_a_choice_comes_before_names(manager, tissue):
    add(manager, "mine", choose_augmentation=lambda stage: darken if stage == 2 else None)
    dark = augmentation_of(2, 48, ["hed"])(tissue.copy(), rng(5))
    np.testing.assert_array_equal(dark, tissue // 2)
    named = augmentation_of(1, 48, ["hed"])(tissue, rng(5))
    np.testing.assert_array_equal(named, BUILT_IN["hed"](tissue, rng(5)))
    assert augmentation_of(1, 48, []) is None


def test_what_is_no_function_is_refused(manager):
    add(manager, "mine", choose_augmentation=lambda: "hed",
        register_augmentations=registering("text", "hed"))  # fmt: skip
    with pytest.raises(TiaftError, match="choose_augmentation gave 'hed', which is no function"):
        augmentation_of(1, 48, [])
    with pytest.raises(TiaftError, match="augmentation text of plug-in mine is 'hed', no function"):
        compose(["text"])
