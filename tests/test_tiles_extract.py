"""Labelled tile sets to feature sets."""

import json

import numpy as np
import pytest
from conftest import TINY, tiaft
from PIL import Image

from tiaft_plugin import TiaftError
from tiaft_plugin.engine.tile_features import extract_tiles
from tiaft_plugin.tiles.colour import colour_features
from tiaft_plugin.tiles.fingerprint import fingerprint
from tiaft_plugin.tiles.images import read_image
from tiaft_plugin.tiles.stain import Macenko
from tiaft_plugin.tiles.tileset import read_tileset


@pytest.fixture
def tiles(tmp_path):
    """A manifest of seven tiles of 32 px at 1 µm/px, in no order; one shows glass."""
    from skimage.data import immunohistochemistry

    pixels, lines = immunohistochemistry(), ["file,label,group,mpp"]
    (tmp_path / "tiles" / "inner").mkdir(parents=True)
    for number in (3, 0, 6, 1, 5, 2, 4):
        name = f"inner/{number}.png"
        tile = pixels[32 * number : 32 * number + 32, 100:132]
        if number == 4:
            tile = np.full_like(tile, 250)
        Image.fromarray(tile).save(tmp_path / "tiles" / name)
        lines.append(f"{name},{'ab'[number % 2]},{'' if number == 5 else f's{number % 3}'},1.0")
    (tmp_path / "tiles" / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "tiles"


def test_features_are_the_network_s_own(tiles, tiny_model):
    from tiaft_plugin.network import load_model

    found = extract_tiles(read_tileset(tiles), str(tiny_model), batch_size=3)
    assert found.keys.tolist() == [f"inner/{number}.png" for number in range(7)]
    assert "".join(found.labels) == "abababa"
    assert found.groups.tolist() == ["s0", "s1", "s2", "s0", "s1", "", "s0"]
    images = np.stack([np.array(Image.open(tiles / key)) for key in found.keys])
    expected = load_model(tiny_model).features(images).detach().numpy()
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.colour, colour_features(images))
    assert found.features.shape == (7, 16) and found.features.dtype == np.float32


def test_about(tiles, tiny_model):
    from tiaft_plugin.files import sha256_of

    tileset = read_tileset(tiles)
    found = extract_tiles(tileset, str(tiny_model))
    [model] = found.about["models"]
    assert model["sha256"] == sha256_of(tiny_model)
    assert found.about["tiles"] == {
        "name": "tiles",
        "fingerprint": fingerprint(tileset),
        "tile_size": 32,
        "mpp": 1.0,
        "resized_to": None,
        "seen_mpp": 1.0,
        "model_mpp": 1.0,
    }
    assert found.about["stain_normalisation"] is None and "not_normalised" not in found.about
    assert not found.warnings and str(tiles) not in json.dumps(found.about)


def test_tiles_of_another_size_are_resized_as_in_finetuning(tiles, tmp_path):
    from tiaft_plugin.network import create_network, load_model, save_model

    net = create_network(TINY, "ab", init="random", tile_size=48, mpp=1.0, hidden=(8,))
    model = save_model(net, tmp_path / "m.safetensors")
    found = extract_tiles(read_tileset(tiles), str(model))
    images = np.stack([read_image(tiles / key, 48) for key in found.keys])
    expected = load_model(model).features(images).detach().numpy()
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-6)
    assert found.about["tiles"]["resized_to"] == 48
    assert found.about["tiles"]["seen_mpp"] == pytest.approx(2 / 3)
    [warning] = found.warnings
    assert "resized to 48 px, have 0.667 µm/px, the model is for 1" in warning
    [mpp] = extract_tiles(read_tileset(tiles, mpp=1.5), str(model)).warnings[:1] or [None]
    assert mpp is None  # 1.5 µm/px at 32 px is 1 µm/px at 48


def test_normalised_stains(tiles, tiny_model):
    found = extract_tiles(read_tileset(tiles), str(tiny_model), stain=Macenko())
    plain = extract_tiles(read_tileset(tiles), str(tiny_model))
    same = (found.features == plain.features).all(axis=1)
    assert same.tolist() == [False] * 4 + [True] + [False] * 2  # the glass
    assert found.about["not_normalised"] == 1
    assert found.about["stain_normalisation"] == {"name": "macenko", "target": "reference"}
    tile = Macenko()(np.array(Image.open(tiles / found.keys[0])))[0]
    np.testing.assert_array_equal(found.colour[0], colour_features(tile[None])[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tile_that_cannot_be_decoded_is_named(tiles, tiny_model, workers):
    tileset = read_tileset(tiles)
    bad = tiles / "inner" / "3.png"
    bad.write_bytes(bad.read_bytes()[:600])  # the header is whole
    with pytest.raises(TiaftError, match=r"inner.3\.png cannot be decoded .*: copy it again"):
        extract_tiles(tileset, str(tiny_model), workers=workers)


def test_a_model_without_features_or_with_nan(tiles, tmp_path):
    import torch

    from tiaft_plugin.network import create_network, save_model

    with pytest.raises(TiaftError, match="no model 'nobody'"):
        extract_tiles(read_tileset(tiles), "nobody")
    net = create_network(TINY, "ab", init="random", tile_size=32, mpp=1.0, hidden=(8,))
    with torch.no_grad():
        net.part_b.hidden.fc1.weight.fill_(3e38)  # finite, but no sum of it is
    model = save_model(net, tmp_path / "m.safetensors")
    with pytest.raises(TiaftError, match="m.safetensors gives NaN or infinity on tiles of"):
        extract_tiles(read_tileset(tiles), str(model))


# The command line


def test_the_same_bytes_for_any_number_of_workers(tiles, tiny_model, tmp_path):
    for name, workers in (("a", 0), ("b", 2), ("c", 0)):
        done = tiaft(
            "features", tiles, "--model", tiny_model, "--out", tmp_path / f"{name}.npz",
            "--workers", workers, "--batch-size", 3, "--stain", "macenko",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert "7 tiles with 16 features each -> " in done.stdout
    assert "1 of 7 tiles not stain-normalised" in done.stdout
    a, b, c = ((tmp_path / f"{name}.npz").read_bytes() for name in "abc")
    assert a == b == c
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["features"].shape == (7, 16) and found["colour"].shape == (7, 54)
        assert found["labels"].tolist() == list("abababa") and found["groups"][5] == ""
        about = json.loads(str(found["about"]))
    assert about["models"][0]["name"] and about["tiles"]["tile_size"] == 32


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--out", "f.csv"], "f.csv: a feature set is written as .npz"),
        (["--out", "there.npz"], "there.npz exists already"),
        (["--out", "f.npz", "--stain-target", "there.npz"], "--stain-target needs --stain"),
        (["--out", "f.npz", "--stain", "vahadane"], "'vahadane' is not 'macenko'"),
    ],
)
def test_wrong_usage(tiles, tiny_model, tmp_path, monkeypatch, options, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.npz").write_text("mine")
    done = tiaft("features", tiles, "--model", tiny_model, *options)
    assert done.returncode == 2 and text in done.stderr
    assert (tmp_path / "there.npz").read_text() == "mine"


@pytest.mark.slow
def test_real_tiles(data, tiny_model, tmp_path):
    done = tiaft(
        "features", data / "crc_val_he_7k", "--model", tiny_model, "--out", tmp_path / "f.npz"
    )
    assert done.returncode == 0 and "32 tiles with 16 features" in done.stdout
    assert "have 3.5 µm/px, the model is for 1" in done.stderr
