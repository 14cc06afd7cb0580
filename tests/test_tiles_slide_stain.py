"""Stains of a whole slide: TIAToolbox's normaliser, estimated once and applied to batches."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiatoolbox.tools.stainnorm import CustomNormalizer, MacenkoNormalizer

from tiaft_plugin import TiaftError
from tiaft_plugin.engine.prepare import Prepare
from tiaft_plugin.tiles import slide_stain, stain
from tiaft_plugin.tiles.slide_stain import SlideMacenko, sample_tiles
from tiaft_plugin.tiles.stain import Macenko, is_stained, make_stain


@pytest.fixture(scope="module")
def tiles():
    """Eight tiles of one piece of tissue, uint8 (8, 48, 48, 3)."""
    from skimage.data import immunohistochemistry

    image = immunohistochemistry()[100:196, 100:292]
    parts = image.reshape(2, 48, 4, 48, 3).swapaxes(1, 2)
    return np.ascontiguousarray(parts.reshape(8, 48, 48, 3))


@pytest.fixture(scope="module")
def fitted(tiles):
    """The normalisation of the slide that the tiles are of."""
    return SlideMacenko().fit(tiles)


def glass(seed=0):
    noise = np.random.default_rng(seed).normal(240, 2, (48, 48, 3))
    return noise.clip(0, 255).astype(np.uint8)


def by_tiatoolbox(tile, found, monkeypatch, *, target=None):
    """What TIAToolbox's class makes of a tile, told the slide's matrix and maxima."""
    normaliser = CustomNormalizer(np.array(found["matrix"]))
    normaliser.stain_matrix_target = stain.REFERENCE
    normaliser.maxC_target = stain.REFERENCE_MAXIMA
    if target is not None:
        own = MacenkoNormalizer()
        own.fit(target.copy())
        normaliser.stain_matrix_target = own.stain_matrix_target
        normaliser.maxC_target = own.maxC_target
    with monkeypatch.context() as patch:
        patch.setattr(np, "percentile", lambda *_, **__: np.array(found["maxima"]))
        return normaliser.transform(tile.copy())


@pytest.mark.parametrize("with_target", [False, True])
def test_tiles_become_what_tiatoolbox_makes_of_them(tiles, with_target, monkeypatch):
    target = np.ascontiguousarray(tiles[3, ::-1, :, ::-1]) if with_target else None
    fitted = SlideMacenko(target).fit(tiles)
    done, normalised = fitted(torch.from_numpy(tiles))
    assert done.dtype == torch.uint8 and normalised.all()
    for tile, found in zip(tiles, done.numpy(), strict=True):
        expected = by_tiatoolbox(tile, fitted.found, monkeypatch, target=target)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        assert (found != expected).mean() < 1e-4  # both are float64
        assert (found != tile).mean() > 0.5


@pytest.mark.parametrize("strength", [0.1, 0.7, 3, 20])
def test_any_colour_becomes_what_tiatoolbox_makes_of_it(strength):
    """Those with no red, all blue and the like, too, on slides that are faint or dark."""
    matrix = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    matrix /= np.linalg.norm(matrix, axis=1)[:, None]
    found = {"matrix": matrix.tolist(), "maxima": [strength, strength / 2], "tiles": 1}
    colours = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    colours[:20] = colours[:20] // 128 * 255
    colours[20:40] //= 16
    done, normalised = SlideMacenko().again(found).tile(colours)
    with pytest.MonkeyPatch.context() as patch:
        expected = by_tiatoolbox(colours, found, patch)
    assert normalised and np.abs(done.astype(int) - expected.astype(int)).max() <= 1


def test_stains_are_those_of_all_sampled_tiles_together(tiles):
    """Glass among them does not matter; the tile's own stains are others."""
    whole = MacenkoNormalizer()
    whole.fit(np.concatenate(tiles))
    found = SlideMacenko().fit([glass(), *tiles, glass(1)]).found
    np.testing.assert_allclose(found["matrix"], whole.stain_matrix_target, rtol=1e-12)
    np.testing.assert_allclose([found["maxima"]], whole.maxC_target, rtol=1e-12)
    assert found["tiles"] == 8
    assert not np.allclose(SlideMacenko().fit(tiles[:1]).found["matrix"], found["matrix"])


def test_of_many_pixels_every_nth_is_enough(tiles, monkeypatch):
    found = SlideMacenko().fit(tiles).found
    monkeypatch.setattr(slide_stain, "_MOST_PIXELS", tiles[..., 0].size // 4)
    fewer = SlideMacenko().fit(tiles).found
    assert fewer != found
    for key in ("matrix", "maxima"):
        np.testing.assert_allclose(fewer[key], found[key], rtol=0.05)


def test_blank_tiles_pass_through_and_are_told(tiles, fitted):
    speck = glass()
    speck[:10, :10] = (90, 40, 120)
    batch = np.stack([tiles[0], glass(), np.full_like(speck, 255), speck, tiles[1]])
    done, normalised = fitted(torch.from_numpy(batch))
    assert normalised.tolist() == [True, False, False, False, True]
    np.testing.assert_array_equal(done[1:4].numpy(), batch[1:4])
    for tile, expected, whether in zip(batch, done.numpy(), normalised.tolist(), strict=True):
        found, was = fitted.tile(tile)
        np.testing.assert_array_equal(found, expected)
        assert was is whether


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=80, deadline=None)
def test_blank_is_the_same_to_tile_and_batch(fitted, height, width, data):
    """Exactly a tenth is enough, as it is for a mean below 0.1; in batches, too."""
    pixels = height * width
    count = data.draw(st.integers(0, pixels) | st.sampled_from([pixels // 10, -(-pixels // 10)]))
    tile = np.full((height, width, 3), 230, np.uint8)
    tile.reshape(-1, 3)[:count] = stain.FAINTEST
    tile.reshape(-1, 3)[count:, data.draw(st.integers(0, 2))] = stain.FAINTEST + 1
    assert is_stained(tile) == ((tile <= stain.FAINTEST).all(axis=2).mean() >= 0.1)
    assert fitted.tile(tile)[1] is is_stained(tile)


def test_a_tile_is_the_same_in_any_batch(tiles, fitted, monkeypatch):
    together = fitted(torch.from_numpy(tiles))[0]
    monkeypatch.setattr(slide_stain, "_PIXELS_AT_ONCE", 1000)
    for part in (slice(0, 1), slice(1, 8), slice(0, 0)):
        planes_first = torch.from_numpy(tiles[part]).permute(0, 3, 1, 2).contiguous()
        found, normalised = fitted(planes_first.permute(0, 2, 3, 1))
        assert torch.equal(found, together[part]) and len(normalised) == len(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_a_tile_is_the_same_on_a_gpu(tiles, fitted):
    batch = torch.from_numpy(np.concatenate([tiles, glass()[None]]))
    done, normalised = fitted(batch.cuda())
    assert done.is_cuda and normalised.is_cuda
    for found, expected in zip((done, normalised), fitted(batch), strict=True):
        assert torch.equal(found.cpu(), expected)


def test_a_slide_without_stains_stays_as_it_is(tiles):
    one_colour = np.full((48, 48, 3), (90, 40, 120), np.uint8)
    grey = np.repeat(np.arange(100, 196, dtype=np.uint8), 24)[:, None].repeat(3, 1)
    for seen in ([glass()], [], [one_colour], [grey.reshape(48, 48, 3)]):
        fitted = SlideMacenko().fit(seen)
        done, normalised = fitted(torch.from_numpy(tiles))
        assert not normalised.any(), fitted.found
        np.testing.assert_array_equal(done.numpy(), tiles)
    matrix = np.array(SlideMacenko().fit(tiles).found["matrix"])
    same = [matrix[0].tolist(), (matrix[0] + (0, 1e-5, 0)).tolist()]
    fitted = SlideMacenko().again({"matrix": same, "maxima": [1.0, 1.0], "tiles": 8})
    assert not fitted(torch.from_numpy(tiles))[1].any()


def test_other_pixels_pass_through(tiles, fitted):
    for odd in (tiles.astype(np.uint16) * 257, tiles[..., :1], tiles / 255):
        done, normalised = fitted(torch.from_numpy(odd))
        np.testing.assert_array_equal(done.numpy(), odd)
        assert not normalised.any()
        assert fitted.tile(odd[0])[1] is False and fitted.tile(odd[0])[0] is not None
    assert not is_stained(tiles[0, ..., 0])


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.just(3)))
)
@settings(max_examples=20, deadline=None)
def test_any_sample_fits_or_is_left_alone(sample):
    before = sample.copy()
    done, normalised = SlideMacenko().fit(sample)(torch.from_numpy(sample))
    np.testing.assert_array_equal(sample, before)
    left = ~normalised.numpy()
    np.testing.assert_array_equal(done.numpy()[left], sample[left])


def test_a_resumed_run_normalises_the_same_to_the_bit(tiles, fitted):
    assert list(fitted.found) == ["matrix", "maxima", "tiles"]
    again = SlideMacenko().again(json.loads(json.dumps(fitted.found)))
    sent = pickle.loads(pickle.dumps(fitted))
    batch = torch.from_numpy(tiles)
    for other in (again, sent):
        assert torch.equal(other(batch)[0], fitted(batch)[0])
        assert other.facts == fitted.facts and other.found == fitted.found


def test_read_only_tiles_and_preparing_in_workers(tiles, fitted):
    tile = tiles[0].copy()
    tile.flags.writeable = False
    found = Prepare(lambda image: image, fitted.tile, colour=True)(tile)
    np.testing.assert_array_equal(found["image"], fitted(torch.from_numpy(tiles))[0][0].numpy())
    assert found["normalised"] and found["colour"].shape == (54,)


# Sampling


def test_sampling_takes_stained_tiles_at_random(tiles):
    slide = {row: tiles[row % 8] if row % 3 == 0 else glass(row) for row in range(300)}
    read = []

    def reader(row):
        read.append(row)
        return slide[row]

    sample = sample_tiles(reader, 300, 7, count=10)
    assert len(sample) == 10 and all(is_stained(tile) for tile in sample)
    assert len(set(read)) == len(read) < 100  # none twice, and no more than it takes
    assert max(read) > 150 and read[-1] % 3 == 0
    first, read[:] = read.copy(), []
    sample_tiles(reader, 300, 7, count=10)
    assert read == first
    read.clear()
    sample_tiles(reader, 300, 8, count=10)
    assert read != first


def test_sampling_ends_on_a_slide_of_glass(monkeypatch):
    monkeypatch.setattr(slide_stain, "TRIED", 12)
    read = []
    assert sample_tiles(lambda row: read.append(row) or glass(), 300, 0) == []
    assert len(read) == 12
    assert sample_tiles(lambda row: glass(), 0, 0) == []


# By name


def test_by_name(tiles, tmp_path):
    assert make_stain(None, scope="slide") is None
    assert isinstance(make_stain("macenko", scope="tile"), Macenko)
    made = make_stain("macenko", scope="slide")
    assert made.facts == {"name": "macenko", "target": "reference", "scope": "slide"}
    assert repr(made) == "SlideMacenko(target='reference')"
    assert made.fit(tiles).facts == made.facts
    Image.fromarray(tiles[0]).save(tmp_path / "target.png")
    made = make_stain("macenko", tmp_path / "target.png", scope="slide")
    assert made.facts["target"] == Macenko(tiles[0]).facts["target"]
    Image.fromarray(glass()).save(tmp_path / "glass.png")
    with pytest.raises(TiaftError, match="glass.png: the stain target shows too little tissue"):
        make_stain("macenko", tmp_path / "glass.png", scope="slide")
    with pytest.raises(TiaftError, match="no stain normalisation of a 'cohort': there are tile, s"):
        make_stain("macenko", scope="cohort")


def test_a_model_trained_on_tiles_normalised_singly_refuses():
    with pytest.raises(TiaftError, match="leave out --stain-target and --stain-scope"):
        stain.agreed_stain(Macenko(), SlideMacenko(), "colon")


@pytest.mark.slow
def test_real_tiles(data, monkeypatch):
    files = sorted((data / "nct_crc_he").glob("*/*.webp"))[::9]
    tiles = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    fitted = SlideMacenko().fit(tiles)
    done, normalised = fitted(torch.from_numpy(tiles))
    assert normalised.all()
    for tile, found in zip(tiles, done.numpy(), strict=True):
        expected = by_tiatoolbox(tile, fitted.found, monkeypatch)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
