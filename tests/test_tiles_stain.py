"""Stain normalisation: TIAToolbox's on tissue, none on glass."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiaft
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from tiatoolbox.tools.stainnorm import MacenkoNormalizer

from tiaft_plugin import FeatureExtractor, TiaftError
from tiaft_plugin.engine.jobs import SlideJob
from tiaft_plugin.engine.run import make_engine, run_slides
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.engine.summary import read_summary
from tiaft_plugin.tiles import stain
from tiaft_plugin.tiles.colour import colour_features
from tiaft_plugin.tiles.stain import Macenko, make_stain, normaliser


@pytest.fixture(scope="module")
def tissue():
    from skimage.data import immunohistochemistry

    return np.ascontiguousarray(immunohistochemistry()[100:196, 100:196])


def glass(seed=0, sd=2.0):
    noise = np.random.default_rng(seed).normal(240, sd, (64, 64, 3))
    return noise.clip(0, 255).astype(np.uint8)


def stock(tile, target=None):
    """What TIAToolbox's own class makes of a tile."""
    normaliser = MacenkoNormalizer()
    if target is None:
        normaliser.stain_matrix_target = stain.REFERENCE
        normaliser.maxC_target = stain.REFERENCE_MAXIMA
    else:
        normaliser.fit(target.copy())
    return normaliser.transform(tile.copy())


def test_tissue_becomes_what_tiatoolbox_makes_of_it(tissue):
    target = np.ascontiguousarray(tissue[::-1, :, ::-1])  # other stains: red and blue exchanged
    for ours, expected in (
        (Macenko(), stock(tissue)),
        (Macenko(target), stock(tissue, target)),
    ):
        found, normalised = ours(tissue)
        assert normalised and found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, tissue)


def test_the_reference_are_unit_vectors_haematoxylin_first():
    np.testing.assert_allclose(np.linalg.norm(stain.REFERENCE, axis=1), 1, atol=1e-4)
    assert stain.REFERENCE[0, 0] > stain.REFERENCE[1, 0]  # it takes more red than eosin does


def test_glass_stays_glass():
    """TIAToolbox's class paints tissue on it without a word, or fails."""
    noisy = glass()
    assert stock(noisy).mean() < 200
    with pytest.raises(ValueError, match="Empty tissue mask"):
        stock(np.full((64, 64, 3), 255, np.uint8))
    speck = glass()
    speck[:10, :10] = (90, 40, 120)
    for tile in (noisy, np.full((64, 64, 3), 255, np.uint8), speck):
        found, normalised = Macenko()(tile)
        assert not normalised
        np.testing.assert_array_equal(found, tile)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)))
    | st.tuples(*[st.integers(0, 255)] * 3).map(lambda c: np.full((8, 8, 3), c, np.uint8))
)
@settings(max_examples=150, deadline=None)
def test_any_tile_is_normalised_or_left_alone(tile):
    before = tile.copy()
    found, normalised = Macenko()(tile)
    np.testing.assert_array_equal(tile, before)
    assert found.shape == tile.shape and found.dtype == np.uint8
    assert normalised or np.array_equal(found, tile)


def test_a_target_s_hash_is_of_its_pixels(tissue, tmp_path):
    assert Macenko().facts == {"name": "macenko", "target": "reference"}
    for name in ("a.png", "b.tif"):
        Image.fromarray(tissue).save(tmp_path / name)
    facts = [make_stain("macenko", tmp_path / name).facts for name in ("a.png", "b.tif")]
    assert facts[0] == facts[1] == Macenko(tissue).facts
    assert Macenko(tissue[:90]).facts != facts[0]
    assert make_stain(None) is None


def test_bad_targets(tmp_path):
    Image.fromarray(glass()).save(tmp_path / "glass.png")
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(glass()[..., 0]).save(tmp_path / "grey.png")
    for name, fault in (
        ("glass.png", "glass.png: the stain target shows too little tissue"),
        ("text.png", "text.png cannot be decoded"),
        ("grey.png", "grey.png is a tile of mode L, not RGB"),
    ):
        with pytest.raises(TiaftError, match=fault):
            make_stain("macenko", tmp_path / name)
    with pytest.raises(TiaftError, match="no stain normalisation 'vahadane': there is macenko"):
        make_stain("vahadane")


def test_slides_with_normalised_stains(tiny_model, slide, tmp_path):
    """Two tiles in three are tissue; with --no-mask glass comes, too."""
    done = {}
    for name, workers in (("one", 0), ("two", 1)):
        engine = make_engine(
            "features", str(tiny_model), auto_mask=False, workers=workers, stain=Macenko()
        )
        engine.verbose = False
        [done[name]] = run_slides(engine, [SlideJob(slide)], tmp_path / name)
    found, other = (read_store(result.store, verify=True) for result in done.values())
    assert found.facts == other.facts
    assert found.facts["stain_normalisation"] == {"name": "macenko", "target": "reference"}
    for a, b in ((found.values, other.values), (found.colour, other.colour)):
        np.testing.assert_array_equal(a[:], b[:])
    left = int((~found.normalised[:]).sum())
    assert 0 < left < len(found)
    note = f"{left} of {len(found)} tiles not stain-normalised"
    assert done["one"].note == note
    assert read_summary(tmp_path / "one" / "summary.csv")[str(slide)]["reason"] == note

    from tiatoolbox.wsicore.wsireader import WSIReader

    reader = WSIReader.open(slide)
    for row in (0, len(found) // 2, len(found) - 1):
        bounds = found.coordinates[row]
        tile = reader.read_bounds(bounds, resolution=1.0, units="mpp", coord_space="resolution")
        tile, normalised = Macenko()(tile)
        assert normalised == found.normalised[row]
        np.testing.assert_array_equal(found.colour[row], colour_features(tile[None])[0])
        expected = engine.outputs_of(tile[None])
        np.testing.assert_allclose(found.values[row], expected[0], rtol=1e-4, atol=1e-5)


def test_other_stains_are_other_settings(tiny_model, slide, tissue, tmp_path):
    Image.fromarray(tissue).save(tmp_path / "target.png")
    command = ("predict", slide, "--model", tiny_model, "--out", tmp_path / "o", "--to", "geojson")
    done = tiaft(*command, "--stain", "macenko", "--stain-target", tmp_path / "target.png")
    assert done.returncode == 0, done.stderr
    assert "tiles not stain-normalised" in done.stdout
    stored = read_store(tmp_path / "o" / "colon.ome.zarr", verify=True)
    assert stored.facts["beside"] == ["normalised"] and stored.colour is None
    for other in ((), ("--stain", "macenko")):
        done = tiaft(*command, *other)
        assert done.returncode == 1
        assert "was made with other settings (stain normalisation " in done.stderr
    done = tiaft(*command, "--stain-target", tmp_path / "target.png")
    assert done.returncode == 2 and "--stain-target needs --stain" in done.stderr


def test_patch_mode_normalises_too(tiny_model, tissue):
    tiles = np.stack([tissue[:32, :32], tissue[32:64, 32:64], glass()[:32, :32]])
    found = FeatureExtractor(tiny_model, verbose=False, stain=Macenko()).run(tiles, patch_mode=True)
    plain = FeatureExtractor(tiny_model, verbose=False)
    expected = plain.run(np.stack([Macenko()(tile)[0] for tile in tiles]), patch_mode=True)
    np.testing.assert_allclose(found["features"], expected["features"], rtol=1e-5)
    assert not np.allclose(found["features"], plain.run(tiles, patch_mode=True)["features"])


def test_it_goes_to_other_processes(tissue):
    again = pickle.loads(pickle.dumps(Macenko(tissue)))
    np.testing.assert_array_equal(again(tissue)[0], Macenko(tissue)(tissue)[0])


@pytest.mark.slow
def test_real_tiles(data):
    left = {}
    for folder in ("01_TUMOR", "02_STROMA", "08_EMPTY"):
        files = sorted((data / "kather2016" / folder).iterdir())[::6]
        tiles = [np.array(Image.open(file).convert("RGB")) for file in files]
        left[folder] = [not Macenko()(tile)[1] for tile in tiles]
    assert not any(left["01_TUMOR"] + left["02_STROMA"]) and np.mean(left["08_EMPTY"]) > 0.9


# Models trained on normalised tiles


@pytest.fixture
def normalised_model(tiny_model, tmp_path):
    """The tiny model, said to have been trained on normalised tiles."""
    return with_stain(tiny_model, tmp_path / "normalised.safetensors", Macenko().facts)


def with_stain(model, path, facts):
    from tiaft_plugin.network import load_model, save_model

    net = load_model(model)
    net.card = replace(net.card, training={"stain": facts})
    return save_model(net, path)


def tiles_of(tissue):
    return np.stack([tissue[:32, :32], tissue[32:64, 32:64], glass()[:32, :32]])


def test_a_function_of_tiles(tissue):
    assert normaliser("none") is None
    normalise = pickle.loads(pickle.dumps(normaliser("macenko")))
    np.testing.assert_array_equal(normalise(tissue), Macenko()(tissue)[0])
    assert normalise.facts == Macenko().facts
    assert repr(normalise) == "Normalise(stain=Macenko(target='reference'))"
    with pytest.raises(TiaftError, match="no stain normalisation 'reinhard': there is macenko"):
        normaliser("reinhard")


@pytest.mark.parametrize("asked", [None, Macenko()])
def test_a_model_trained_on_normalised_tiles_gets_such_tiles(
    normalised_model, tiny_model, slide, tissue, tmp_path, asked
):
    tiles = tiles_of(tissue)
    extractor = FeatureExtractor(normalised_model, verbose=False, stain=asked)
    found = extractor.run(tiles, patch_mode=True)
    told = FeatureExtractor(tiny_model, verbose=False, stain=Macenko()).run(tiles, patch_mode=True)
    np.testing.assert_allclose(found["features"], told["features"], rtol=1e-5)

    stores = {}
    for name, model, option in (
        ("own", normalised_model, asked),
        ("told", tiny_model, Macenko()),
    ):
        engine = make_engine("predictions", str(model), stain=option)
        engine.verbose = False
        [result] = run_slides(engine, [SlideJob(slide)], tmp_path / name)
        stores[name] = read_store(result.store, verify=True)
        assert "tiles not stain-normalised" in result.note
    own, other = stores["own"], stores["told"]
    assert own.facts["stain_normalisation"] == {"name": "macenko", "target": "reference"}
    np.testing.assert_array_equal(own.values[:], other.values[:])
    np.testing.assert_array_equal(own.normalised[:], other.normalised[:])


def test_its_features_of_tile_sets_say_so(normalised_model, tissue, tmp_path):
    from tiaft_plugin.engine.tile_features import extract_tiles
    from tiaft_plugin.tiles.tileset import read_tileset

    for number, tile in enumerate(tiles_of(tissue)):
        for label in "ab":
            (tmp_path / "tiles" / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile).save(tmp_path / "tiles" / label / f"{number}.png")
    about = extract_tiles(read_tileset(tmp_path / "tiles", mpp=1.0), str(normalised_model)).about
    assert about["stain_normalisation"] == Macenko().facts and about["not_normalised"] == 2


def test_tiatoolbox_s_own_engines_normalise_for_it(normalised_model, tiny_model, tissue):
    from tiatoolbox.models import DeepFeatureExtractor, PatchPredictor

    from tiaft_plugin.zoo.folder import add_model

    add_model("normalised", normalised_model)
    add_model("plain", tiny_model)
    tiles = tiles_of(tissue)
    by_hand = np.stack([Macenko()(tile)[0] for tile in tiles])
    for engine, suffix, key in (
        (PatchPredictor, "", "probabilities"),
        (DeepFeatureExtractor, "-features", "features"),
    ):
        ours = engine("normalised" + suffix, verbose=False)
        plain = engine("plain" + suffix, verbose=False)
        kwargs = {"patch_mode": True, "return_probabilities": True}
        found = ours.run(tiles, **kwargs)[key]
        np.testing.assert_allclose(found, plain.run(by_hand, **kwargs)[key], rtol=1e-5)
        assert not np.allclose(found, plain.run(tiles, **kwargs)[key])
        ours.model.preproc_func = None  # TIAToolbox's way to its own preprocessing
        np.testing.assert_array_equal(ours.model.preproc_func(tiles[0]), by_hand[0])
        assert len(pickle.dumps(ours.model.preproc_func)) < 10_000  # workers get no network


def test_another_normalisation_is_refused(normalised_model, tiny_model, tissue, tmp_path):
    said = "normalised.safetensors was trained on tiles normalised to .*leave out --stain-target"
    with pytest.raises(TiaftError, match=said):
        make_engine("features", str(normalised_model), stain=Macenko(tissue))
    other = {"name": "macenko", "target": "sha256:00"}
    strange = with_stain(tiny_model, tmp_path / "strange.safetensors", other)
    with pytest.raises(TiaftError, match="strange.safetensors is for tiles .* upgrade tiaft_plug"):
        make_engine("features", str(strange))
