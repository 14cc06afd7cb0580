"""Grad-CAM++: the formula, the layers, the sanity check, the report, and scores for QuPath."""

import csv
import json
import shutil
import uuid

import numpy as np
import pytest
import torch
from conftest import TINY, tiaft, write_slide
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn

from tiaft_extensions.interpretability import report
from tiaft_extensions.interpretability.gradcam.cams import (
    cams,
    combine,
    enlarged,
    weighted,
    weights_plain,
    weights_plus,
)
from tiaft_extensions.interpretability.gradcam.heatmap import SlideMap, over, write_pyramid
from tiaft_extensions.interpretability.gradcam.sanity import alike, check_sanity, randomised
from tiaft_extensions.interpretability.gradcam.scores import keep_scores, scores_of, scores_path
from tiaft_extensions.interpretability.pick import confident_tiles
from tiaft_extensions.interpretability.subject import (
    Subject,
    activations,
    default_layers,
    gradients_at,
    last_layer,
    layer,
    layers_of,
    load_subject,
    variants,
)
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.tiles.tileset import read_tileset

SIZE = 8  # px, of the tiny networks' tiles
CLASSES = ("dark", "light")


class Tiny(nn.Module):
    """A convolution, ReLU, and a linear classifier of every cell of its maps."""

    def __init__(self, maps: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, maps, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(maps * (SIZE // 2) ** 2, 2)

    def forward(self, tiles):
        return self.head(self.relu(self.conv(tiles.permute(0, 3, 1, 2) / 255)).flatten(1))


def subject_of(network, classes=CLASSES, size=SIZE) -> Subject:
    return Subject("tiny", network.eval(), tuple(classes), False, size, 1.0)


@pytest.fixture
def tiny() -> Subject:
    torch.manual_seed(3)
    return subject_of(Tiny())


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model file: two classes, tiles of 96 px, whose last maps are 3 × 3."""
    net = create_network(TINY, CLASSES, init="random", tile_size=96, mpp=1.0, hidden=(8,))
    return save_model(net, tmp_path_factory.mktemp("model") / "m.safetensors")


@pytest.fixture
def tile_folder(tmp_path):
    rng = np.random.default_rng(1)
    for name, level in zip(CLASSES, (40, 200), strict=True):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(level - 30, level + 30, (96, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tiles" / name / f"{number}.png")
    return tmp_path / "tiles"


def plus_by_hand(maps: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Grad-CAM++ of one tile, maps and gradients (K, h, w), number by number: eq. 19."""
    found = np.zeros(maps.shape[1:])
    for a, slope in zip(maps, g, strict=True):
        weight = 0.0
        for value in slope.ravel():
            below = 2 * value**2 + value**3 * a.sum()
            alpha = value**2 / below if below != 0 else 0.0
            weight += alpha * max(value, 0.0)
        found += weight * a
    return np.maximum(found, 0)


# The formula


def test_maps_are_those_of_the_closed_formula(tiny, tiles):
    network = tiny.network
    kernel, bias = (tensor.detach().double().numpy() for tensor in network.conv.parameters())
    found = cams(tiny, tiles, "light", "relu")
    logits = []
    for number, tile in enumerate(tiles):
        padded = np.pad(tile.transpose(2, 0, 1) / 255, ((0, 0), (1, 1), (1, 1)))
        maps = np.array([
            [
                [(padded[:, y : y + 3, x : x + 3] * k).sum() + b for x in range(0, SIZE, 2)]
                for y in range(0, SIZE, 2)
            ]
            for k, b in zip(kernel, bias, strict=True)
        ]).clip(0)  # fmt: skip
        g = network.head.weight[1].detach().double().numpy().reshape(maps.shape)
        np.testing.assert_allclose(found.plus[number], plus_by_hand(maps, g), atol=1e-5)
        plain = np.maximum((g.mean((1, 2))[:, None, None] * maps).sum(0), 0)
        np.testing.assert_allclose(found.plain[number], plain, atol=1e-5)
        head = network.head.weight.detach().double().numpy() @ maps.ravel()
        logits.append(head + network.head.bias.detach().double().numpy())
    odds = np.exp(logits)
    np.testing.assert_allclose(found.probability, odds[:, 1] / odds.sum(1), atol=1e-5)
    np.testing.assert_allclose(weighted(found)[2], found.plus[2] * found.probability[2])


numbers = st.floats(-3, 3, width=32).map(lambda value: 0.0 if abs(value) < 1e-3 else value)


@given(
    arrays.arrays("f4", (2, 3, 2, 2), elements=numbers.map(abs)),
    arrays.arrays("f4", (2, 3, 2, 2), elements=numbers),
)
def test_weights_of_any_maps_are_those_of_the_formula(maps, slopes):
    weights = weights_plus(torch.from_numpy(maps), torch.from_numpy(slopes))
    found = combine(torch.from_numpy(maps), weights).numpy()
    wanted = np.stack(
        [plus_by_hand(a, g) for a, g in zip(maps.astype(float), slopes.astype(float), strict=True)]
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_small_gradients_count_in_full():
    maps, slopes = torch.full((1, 1, 2, 2), 0.5), torch.full((1, 1, 2, 2), 1e-12)
    assert weights_plus(maps, slopes).item() == pytest.approx(4 * 0.5 * 1e-12)
    assert weights_plain(maps, slopes).item() == pytest.approx(1e-12)
    assert weights_plus(maps, 0 * slopes).item() == 0


def test_flat_maps_stay_flat_and_others_end_at_one():
    maps = np.array([[[0, 0], [0, 0]], [[0, 2], [1, 4]]], np.float32)
    large = enlarged(maps, 6)
    assert large.shape == (2, 6, 6) and not large[0].any() and large[1].max() == 1
    pixels = np.full((6, 6, 3), 90, np.uint8)
    assert (over(pixels, large[0], outline=True) == 90).all()
    assert (over(pixels, large[1])[5, 5] != 90).any()


# The subject


def test_a_model_without_gradients_is_refused(tiles):
    class Frozen(Tiny):
        def forward(self, tiles):
            with torch.no_grad():
                return super().forward(tiles)

    with pytest.raises(TiaftError, match="no gradients flow through tiny from its output to relu"):
        cams(subject_of(Frozen()), tiles, "dark", "relu")


def test_what_is_computed_in_place_does_not_reach_back(tiles):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)
            self.head = nn.Linear(4, 2)

        def forward(self, tiles):
            x = self.conv(tiles.permute(0, 3, 1, 2) / 255)
            x += 1
            return self.head(self.relu(x).mean(dim=(2, 3)))

    subject = subject_of(InPlace())
    with torch.no_grad():
        wanted = subject.network.conv(torch.from_numpy(tiles).permute(0, 3, 1, 2) / 255)
    found = activations(subject, tiles, ["conv"], pooled=False)["conv"]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    pooled = activations(subject, tiles, ["conv"])["conv"]
    np.testing.assert_allclose(pooled, wanted.mean(dim=(2, 3)), atol=1e-6)
    maps, slopes = gradients_at(subject, tiles, "conv", lambda logits: logits[:, 0])
    np.testing.assert_allclose(maps, wanted, atol=1e-6)
    open_ = (wanted + 1 > 0).numpy()
    weight = subject.network.head.weight[0].detach().numpy()[:, None, None] / SIZE**2
    np.testing.assert_allclose(slopes, open_ * weight, atol=1e-7)


def test_layers_stand_in_the_order_they_run_with_their_channels(model):
    subject = load_subject(str(model))
    layers = layers_of(subject)
    names = list(layers)
    assert names.index("conv1") < names.index("layer1") < names.index("layer4")
    assert layers["layer4"] == subject.network.part_a.num_features
    chosen = default_layers(subject)
    assert chosen == sorted(chosen, key=names.index) and chosen[-1] == last_layer(subject)
    assert layer(subject, "layer1") is layer(subject, "part_a.layer1")
    with pytest.raises(TiaftError, match=r"m has no layer 'layer9' that gives a map: it has .*lay"):
        layer(subject, "layer9")


def test_pooled_vectors_are_no_maps_and_channels_last_maps_are():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.squeeze = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)
            self.last, self.pool = nn.Linear(5, 7), nn.AdaptiveAvgPool2d(1)

        def forward(self, tiles):
            x = self.conv(tiles.permute(0, 3, 1, 2) / 255)
            x = x * self.squeeze(x.mean(dim=(2, 3), keepdim=True)).sigmoid()
            return self.pool(self.last(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).flatten(1)

    subject = subject_of(Odd(), classes=())
    assert layers_of(subject) == {"conv": 5, "last": 7}
    tiles = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    found = activations(subject, tiles, ["last"], pooled=False)["last"]
    assert found.shape == (2, 7, SIZE, SIZE)


def test_a_name_and_its_features_are_the_file(model, model_folder, tiny_model):
    model_folder.mkdir()
    (model_folder / "mine.safetensors").write_bytes(model.read_bytes())
    named, filed = load_subject("mine"), load_subject(str(model))
    assert named.sha256 == filed.sha256 and named.classes == CLASSES and named.tile_size == 96
    features = load_subject("mine-features")
    assert features.classes == () and list(layers_of(features)) == list(layers_of(named))
    tiles = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = load_model(model).features(tiles)
        assert torch.equal(features.network(tiles), wanted)
    with pytest.raises(TiaftError, match="gives features, not classes: a classifier is needed"):
        cams(features, tiles, "dark")
    with pytest.raises(TiaftError, match="no model 'nobody'"):
        load_subject("nobody")
    with pytest.raises(TiaftError, match="gone.safetensors: no such model file"):
        load_subject("gone.safetensors")


def test_variants_differ_in_nothing_but_weights(model, tmp_path):
    subject = load_subject(str(model))
    other = create_network(TINY, init="random", tile_size=96, mpp=1.0, seed=5)
    file = save_model(other, tmp_path / "other.safetensors")
    found = variants(subject, file, seed=2)
    assert list(found) == ["random", "pretrained", "fine-tuned"]
    assert found["fine-tuned"] is subject
    again = variants(subject, "none", seed=2)
    assert list(again) == ["random", "fine-tuned"]
    weights = {name: each.network.part_a.state_dict() for name, each in found.items()}
    name = "layer1.0.conv1.weight"
    assert torch.equal(weights["random"][name], again["random"].network.part_a.state_dict()[name])
    assert torch.equal(weights["pretrained"][name], other.part_a.state_dict()[name])
    assert not torch.equal(weights["random"][name], weights["fine-tuned"][name])
    assert not found["random"].network.training
    with pytest.raises(TiaftError, match=r"^--pretrained x.pth: neither imagenet nor a file \("):
        variants(subject, "x.pth")
    with pytest.raises(TiaftError, match="--pretrained random: a network with random weights is"):
        variants(subject, "random")


def test_a_plugins_network_has_variants_too(tiny, tmp_path):
    found = variants(tiny, seed=1)
    assert list(found) == ["random", "fine-tuned"]
    assert not torch.equal(found["random"].network.conv.weight, tiny.network.conv.weight)
    torch.save(tiny.network.state_dict(), tmp_path / "w.pth")
    same = variants(found["random"], tmp_path / "w.pth")["pretrained"]
    assert torch.equal(same.network.conv.weight, tiny.network.conv.weight)
    with pytest.raises(TiaftError, match="--pretrained .*no.pth: no such file"):
        variants(tiny, tmp_path / "no.pth")


# The sanity check


@pytest.mark.parametrize("backbone", [TINY, "test_efficientnet"])
def test_every_weight_becomes_random_once_and_the_subject_stays(backbone):
    net = create_network(backbone, CLASSES, init="random", tile_size=64, hidden=(8,))
    subject = subject_of(net, size=64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = variants(subject, "none", seed=7)["random"].network.state_dict()
    parts, changed = [], subject
    for part, changed in randomised(subject, seed=7):
        now = changed.network.state_dict()
        if part == "classifier":
            assert all(torch.equal(now[n], before[n]) for n in now if n.startswith("part_a."))
        parts.append(part)
    assert parts[0] == "classifier" and len(parts) == len(set(parts)) > 4
    assert all(torch.equal(value, random[n]) for n, value in changed.network.state_dict().items())
    assert all(torch.equal(value, before[n]) for n, value in net.state_dict().items())


def test_maps_of_a_trained_network_change_with_its_weights(tiny, tiles):
    first, *later = check_sanity(tiny, tiles, "light", "relu", seed=1)
    assert first.part == "none" and np.allclose(first.plus, 1) and not first.changed
    assert later[-1].changed and (later[-1].plus < 0.9).any()


def test_correlations_are_of_ranks_and_none_of_flat_maps():
    maps = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    found = alike(maps, np.stack([np.exp(maps[0]), -maps[1]]))
    np.testing.assert_allclose(found, [1, -1])
    assert np.isnan(alike(maps, np.ones_like(maps))).all()


# Tiles, and the report


class Bright(nn.Module):
    """Gives a tile the class `light` the more surely the brighter it is."""

    def forward(self, tiles):
        level = tiles.float().mean(dim=(1, 2, 3)) / 255 - 0.5
        return torch.stack([-20 * level, 20 * level], dim=1)


def test_sure_tiles_are_of_the_class_and_exceed_the_threshold(tile_folder):
    subject, tileset = subject_of(Bright(), size=96), read_tileset(tile_folder)
    dim = np.full((96, 96, 3), 150, np.uint8)  # p .975
    Image.fromarray(dim).save(tile_folder / "light" / "dim.png")
    tileset = read_tileset(tile_folder)
    tiles, rows = confident_tiles(subject, tileset, "light", count=9)
    assert tiles.shape == (3, 96, 96, 3) and "dim" not in {tileset.files[row].stem for row in rows}
    assert {tileset.labels[row] for row in rows} == {"light"}
    assert len(confident_tiles(subject, tileset, "light", count=2)[1]) == 2
    with pytest.raises(
        TiaftError, match=r"no tile of light in .* p > 0\.99999: the highest is 0\.99998"
    ):
        confident_tiles(subject, tileset, "light", at_least=0.99999, count=2)
    with pytest.raises(TiaftError, match="has no class 'grey': it has dark, light"):
        confident_tiles(subject, tileset, "grey", count=2)


def test_the_report_has_each_section_once_in_order(tmp_path):
    for command in ("concepts", "gradcam"):
        with report.section_folder(tmp_path, command) as folder:
            (folder / "section.html").write_text(f"<h2>of {command}</h2>")
    text = (tmp_path / "report.html").read_text()
    assert text.index("of gradcam") < text.index("of concepts") and text.count("<h2>") == 2
    with (
        pytest.raises(TiaftError, match="gradcam exists already: .* or pass --overwrite"),
        report.section_folder(tmp_path, "gradcam"),
    ):
        raise AssertionError("refused before any work")
    (tmp_path / "visualize").mkdir()
    with (
        pytest.raises(TiaftError, match="visualize is not of `tiaft interpret`: it is left alone"),
        report.section_folder(tmp_path, "visualize", overwrite=True),
    ):
        raise AssertionError("refused before any work")


def test_what_fails_leaves_the_earlier_report(tmp_path):
    with report.section_folder(tmp_path, "gradcam") as folder:
        (folder / "section.html").write_text("<h2>first</h2>")
    with (
        pytest.raises(KeyboardInterrupt),
        report.section_folder(tmp_path, "gradcam", overwrite=True) as folder,
    ):
        (folder / "section.html").write_text("<h2>second</h2>")
        raise KeyboardInterrupt
    assert "first" in (tmp_path / "gradcam/section.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gradcam", "report.html"]


# Slides


def test_a_slides_map_lies_where_its_tiles_do(tmp_path):
    canvas = SlideMap((400, 200), cell=16.0)
    assert canvas.downsample == 1
    maps = np.array([[[1, 1], [1, 1]], [[3, 3], [3, 3]], [[2, 2], [2, 2]]], np.float32)
    bounds = np.array([[0, 0, 100, 100], [50, 0, 150, 100], [350, 150, 450, 250]], float)
    canvas.add(bounds, maps)
    mean = canvas.sums / np.maximum(canvas.counts, 1)
    assert (mean[:100, :50] == 1).all() and (mean[:100, 50:100] == 2).all()
    assert (mean[:100, 100:150] == 3).all() and (mean[150:, 350:] == 2).all()
    assert canvas.counts[100:150].sum() == 0 and canvas.heat()[10, 120] == 1
    big = SlideMap((100_000, 50_000), cell=60.0)
    assert big.sums.shape == (3072, 6144)


def test_the_pyramid_is_a_slide_of_the_same_size_in_um(tmp_path):
    from tiatoolbox.wsicore.wsireader import WSIReader

    pixels = np.zeros((600, 1300, 3), np.uint8)
    pixels[100:200, 300:500] = (10, 200, 30)
    write_pyramid(tmp_path / "heat.ome.tiff", pixels, (2.0, 2.0))
    reader = WSIReader.open(tmp_path / "heat.ome.tiff")
    assert tuple(reader.info.slide_dimensions) == (1300, 600) and reader.info.level_count == 3
    assert np.allclose(reader.info.mpp, 2.0)
    found = reader.read_bounds((300, 100, 500, 200), resolution=4.0, units="mpp")
    assert (
        found.shape[:2] == (50, 100) and np.abs(found[25, 50].astype(int) - (10, 200, 30)).max() < 3
    )


def test_scores_stay_beside_the_store_and_are_found_by_tile(tmp_path):
    store, ids = tmp_path / "s.zarr", [uuid.uuid4() for _ in range(5)]
    assert scores_of(store, ids) == {}
    values = np.arange(5, dtype=np.float32)
    keep_scores(store, ids, {"a": values})
    keep_scores(store, ids[::-1], {"b": values})
    found = scores_of(store, [ids[3], ids[1]])
    assert found["a"].tolist() == [3, 1] and found["b"].tolist() == [1, 3]
    other = scores_of(store, [ids[0], uuid.uuid4()])
    assert other["a"][0] == 0 and np.isnan(other["a"][1])
    assert scores_of(store, [uuid.uuid4()]) == {}
    keep_scores(store, ids[:2], {"c": values[:2]})  # the store was made anew, with other tiles
    assert list(scores_of(store, ids[:2])) == ["c"]
    scores_path(store).write_bytes(b"PK")
    with pytest.raises(TiaftError, match=r"s\.gradcam\.npz is damaged: remove it, and run"):
        scores_of(store, ids)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory, model):
    """A slide of 400 × 300 px, and the folder with its predictions."""
    folder = tmp_path_factory.mktemp("predicted")
    pixels = np.random.default_rng(2).integers(0, 160, (300, 400, 3), dtype=np.uint8)
    pixels[:, 200:] += 90
    slide = write_slide(folder / "s.ome.tiff", pixels)
    done = tiaft("predict", slide, "--model", model, "--out", folder / "p", "--no-mask")
    assert done.returncode == 0, done.stderr
    return slide, folder / "p"


def test_scores_reach_geojson_and_whatever_comes_later(predicted, model, tmp_path):
    slide, folder = predicted
    arguments = ["interpret", "gradcam", "--store", folder, "--slide", slide.parent, "--model"]
    arguments += [model, "--class", "light", "--at-least", "0", "--out", tmp_path]
    done = tiaft(*arguments)
    assert done.returncode == 0, done.stderr
    file = json.loads((tmp_path / "gradcam/s.ome.geojson").read_text())
    measured = [feature["properties"]["measurements"] for feature in file["features"]]
    for each in measured:
        assert {"Probability: light", "Grad-CAM++ mean: light"} < each.keys()
        assert 0 <= each["Grad-CAM++ mean: light"] <= each["Grad-CAM++ max: light"]
    assert max(each["Grad-CAM++ max: light"] for each in measured) > 0
    from tiaft_plugin.engine.predictions import predictions_of
    from tiaft_plugin.engine.store import read_store

    [block] = predictions_of(read_store(folder / "s.ome.zarr"), slide).blocks()
    wanted = [each["Grad-CAM++ max: light"] for each in measured]
    np.testing.assert_allclose(block.measurements["Grad-CAM++ max: light"], wanted, rtol=1e-6)
    assert (tmp_path / "gradcam/s.ome-light.ome.tiff").is_file()
    assert "Where the model looks" in (tmp_path / "report.html").read_text()
    again = tiaft(*arguments)
    assert again.returncode == 2 and "pass --overwrite" in again.stderr


def test_tiles_are_explained_with_tables_and_pictures(tile_folder, model, tmp_path):
    arguments = [tile_folder, "--model", model, "--at-least", "0", "--count", 2]
    done = tiaft("interpret", "gradcam", *arguments, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "o/gradcam/tiles.csv").open()))
    assert [row["class"] for row in rows] == ["dark", "dark", "light", "light"]
    picture = np.array(Image.open(tmp_path / "o/gradcam" / rows[0]["picture"]))
    original = np.array(Image.open(tile_folder / rows[0]["file"]))
    assert picture.shape == (96, 288, 3) and np.array_equal(picture[:, :96], original)
    steps = list(csv.DictReader((tmp_path / "o/gradcam/sanity.csv").open()))
    assert steps[0]["random_from"] == "none" and steps[2]["random_from"] == "classifier"
    page = (tmp_path / "o/report.html").read_text()
    assert "Sanity check" in page and "http" not in page


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["TILES", "--layer", "layer7"], "no layer 'layer7' that gives a map: it has"),
        (["TILES", "--class", "grey"], "m has no class 'grey': it has dark, light"),
        (["TILES", "--at-least", "0.9999"], "no tile of dark in"),
        (["nowhere"], "nowhere"),
        ([], "name TILES, or a --store with its --slide"),
        (["TILES", "--to", "geojson"], "--to needs --store"),
        (["--store", "STORE"], "--store needs --slide"),
        (["--store", "STORE", "--slide", "SLIDE"], "--store needs --class"),
        (
            ["--store", "STORE", "--slide", "gone.tiff", "--class", "dark"],
            "gone.tiff: no such file",
        ),
        (["--store", "x", "--slide", "SLIDE", "--class", "dark"], "x: no such store"),
        (["--store", "STORE", "--slide", "MODEL", "--class", "dark"], "is of another s.ome.tiff"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, text, predicted, model, tile_folder, tmp_path):
    slide, folder = predicted
    places = {"TILES": tile_folder, "STORE": folder, "SLIDE": slide, "MODEL": model}
    given = [places.get(argument, argument) for argument in arguments]
    done = tiaft("interpret", "gradcam", *given, "--model", model, "--out", tmp_path / "o")
    assert done.returncode == 2 and text in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "o/gradcam").exists()


def test_a_store_of_another_model_is_refused(predicted, tiny_model, tmp_path):
    slide, folder = predicted
    given = ["--store", folder, "--slide", slide, "--class", "a", "--model", tiny_model]
    done = tiaft("interpret", "gradcam", *given, "--out", tmp_path)
    assert done.returncode == 2 and "was predicted by m.safetensors" in done.stderr


def test_one_bad_store_does_not_keep_the_others(predicted, model, tmp_path):
    slide, folder = predicted
    (tmp_path / "empty.zarr").mkdir()
    given = ["--store", folder, "--store", tmp_path / "empty.zarr", "--slide", slide]
    given += ["--class", "dark", "--model", model, "--out", tmp_path / "o"]
    done = tiaft("interpret", "gradcam", *given)
    assert done.returncode == 1 and "FAILED" in done.stderr and "is no store" in done.stderr
    assert (tmp_path / "o/report.html").is_file()


def test_stores_of_one_name_are_refused_and_pictures_of_a_slide_have_their_places(
    predicted, model, tmp_path
):
    slide, folder = predicted
    shutil.copytree(folder, tmp_path / "again")
    given = ["--store", folder, "--slide", slide, "--class", "dark", "--model", model]
    given += ["--at-least", "0", "--out", tmp_path / "o"]
    done = tiaft("interpret", "gradcam", *given, "--store", tmp_path / "again")
    assert done.returncode == 2 and "two stores are called s.ome: their files" in done.stderr
    assert tiaft("interpret", "gradcam", *given).returncode == 0
    rows = list(csv.DictReader((tmp_path / "o/gradcam/tiles.csv").open()))
    for number, row in enumerate(rows, start=1):
        place = row["file"].removeprefix("s.ome ").replace("=", "_").replace(" ", "_")
        assert row["picture"] == f"dark/{number:02d}-s.ome_{place}.png"


def test_a_transformer_is_refused_plainly(tmp_path):
    net = create_network("test_vit", CLASSES, init="random", tile_size=160, hidden=(8,))
    with pytest.raises(TiaftError, match="a vision transformer, whose blocks give no maps"):
        cams(subject_of(net, size=160), np.zeros((1, 160, 160, 3), np.uint8), "dark")


def test_maps_of_the_real_model_are_finite_on_real_tissue(data):
    """The fine-tuned network is not at hand in tests: ImageNet's backbone, a random classifier."""
    net = create_network(
        "mobilenetv2_100",
        CLASSES,
        init=str(data / "weights/mobilenetv2_100.imagenet.safetensors"),
        tile_size=150,
        backbone_args={"pad_type": "same"},
        hidden=(16,),
    )
    subject = subject_of(net, size=150)
    tileset = read_tileset(data / "kather2016")
    rows = [tileset.labels.index("07_ADIPOSE"), tileset.labels.index("01_TUMOR")]
    from tiaft_extensions.interpretability.pick import read_tiles

    maps = cams(subject, read_tiles(subject, tileset, rows), "dark")
    assert maps.plus.shape == (2, 5, 5) and np.isfinite(maps.plus).all() and maps.plus.max() > 0
