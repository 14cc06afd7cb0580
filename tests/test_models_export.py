"""Models in the formats of others: the same outputs, or no file."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, tiaft
from torch import nn

from tiaft_plugin.errors import Stopped, TiaftError
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.network import export as exporting
from tiaft_plugin.network.card import METADATA_KEY, card_from_json
from tiaft_plugin.network.export import check_tiles, export_network, relative_difference
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.export import SUFFIXES, export_model

WHOLE = ("torchscript", "pt2", "onnx")


def network(backbone=TINY, classes="abc", **card):
    settings = {"init": "random", "tile_size": 32, "mpp": 1.0, "hidden": (16,), **card}
    return create_network(backbone, classes, **settings)


def saved(tmp_path, name="model", **card):
    return str(save_model(network(**card), tmp_path / f"{name}.safetensors"))


def run(path, tiles):
    """What a stranger does with the file, who has torch or ONNX Runtime only."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        return session.run(None, {given.name: tiles})[0]
    pt2 = path.suffix == ".pt2"
    module = torch.export.load(path).module() if pt2 else torch.jit.load(path)
    with torch.no_grad():
        return module(torch.from_numpy(tiles)).numpy()


@pytest.mark.parametrize("to", WHOLE)
@pytest.mark.parametrize("features", [False, True])
def test_any_number_of_uint8_tiles_gives_what_the_model_gives(tmp_path, to, features):
    net = network()
    path = tmp_path / f"x{SUFFIXES[to][0]}"
    assert export_network(net, path, to, features=features) <= exporting.TOLERANCE
    tiles = np.random.default_rng(9).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.inference_mode():
        wanted = net.features(tiles) if features else net(tiles).softmax(dim=1)
    for count in (1, 5):
        found = run(path, tiles[:count])
        np.testing.assert_allclose(found, wanted[:count].numpy(), rtol=1e-4, atol=1e-6)


def test_labels_get_a_sigmoid_each(tmp_path):
    net = network(task="multilabel")
    export_network(net, tmp_path / "x.pt", "torchscript")
    with torch.inference_mode():
        wanted = net(check_tiles(32)).sigmoid().numpy()
    np.testing.assert_allclose(run(tmp_path / "x.pt", check_tiles(32)), wanted, rtol=1e-4)


def test_the_card_travels_along(tmp_path):
    import onnx

    net = network()
    for to in WHOLE:
        export_network(net, tmp_path / f"x{SUFFIXES[to][0]}", to)
    properties = {p.key: p.value for p in onnx.load(tmp_path / "x.onnx").metadata_props}
    extra = {METADATA_KEY: ""}
    torch.jit.load(tmp_path / "x.pt", _extra_files=extra)
    other = {METADATA_KEY: ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=other)
    for text in (properties[METADATA_KEY], extra[METADATA_KEY], other[METADATA_KEY]):
        text = text.decode() if isinstance(text, bytes) else text
        assert card_from_json(text) == net.card


@pytest.mark.parametrize("to", WHOLE)
def test_no_file_says_in_whose_folders_it_was_made(tmp_path, to):
    path = tmp_path / f"x{SUFFIXES[to][0]}"
    export_network(network(), path, to)
    contents = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist()]
    folders = (str(tmp_path), "site-packages", exporting.__file__)
    assert not [f for f in folders for content in contents if f.encode() in content]


class Wrong(exporting.Exported):
    """Forgets to normalise."""

    def forward(self, tiles):
        net = self.net
        return net.part_b(net.part_a(tiles.permute(0, 3, 1, 2).float() / 255)).softmax(dim=1)


class OneSize(exporting.Exported):
    """Works with the batch it was traced with, of two tiles, and no other."""

    def forward(self, tiles):
        return super().forward(tiles) + torch.zeros(2, 3)


class Scripted(exporting.Exported):
    """Goes another way for some tiles, which a trace does not see."""

    def forward(self, tiles):
        outputs = super().forward(tiles)
        return outputs if float(tiles.float().mean()) > 1 else outputs * 0.5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Wrong, "gives other outputs than the network .relative difference .*nothing is written"),
        (OneSize, "fails on 8 tiles .*nothing is written"),
    ],
)
def test_a_file_with_other_outputs_is_refused(tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(exporting, "Exported", fault)
    with pytest.raises(Stopped, match=f"{TINY} exported to torchscript {said}"):
        export_network(network(), tmp_path / "x.pt", "torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["pt2", "onnx"])
def test_what_cannot_be_exported_is_one_line(tmp_path, monkeypatch, to):
    monkeypatch.setattr(exporting, "Exported", Scripted)
    with pytest.raises(Stopped, match=f"^{TINY} cannot be exported to {to}: ") as caught:
        export_network(network(), tmp_path / f"x.{to}", to)
    assert len(str(caught.value)) < 500 and list(tmp_path.iterdir()) == []


def test_a_refused_file_leaves_the_older_one(tmp_path, monkeypatch):
    (tmp_path / "x.pt").write_text("older")
    with pytest.raises(TiaftError, match="exists already"):
        export_network(network(), tmp_path / "x.pt", "torchscript")
    monkeypatch.setattr(exporting, "Exported", Wrong)
    with pytest.raises(Stopped, match="other outputs"):
        export_network(network(), tmp_path / "x.pt", "torchscript", overwrite=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.pt", "older")]


def test_without_the_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if "script" in name else 1)
    done = tiaft("models", "export", saved(tmp_path), tmp_path / "x.onnx", "--to", "onnx")
    assert done.returncode == 2
    assert done.stderr == "Error: --to onnx needs onnxscript: pip install 'tiaft_plugin[export]'\n"


def test_check_tiles_are_noise_and_structure():
    tiles = check_tiles(30)
    assert tiles.shape == (8, 30, 30, 3) and tiles.dtype == np.uint8
    assert tiles.min() == 0 and tiles.max() == 255
    flat = tiles.reshape(8, -1).astype(float)
    assert np.linalg.matrix_rank(flat) == 7, "all but black differ"


def test_relative_difference():
    wanted = np.array([[1.0, -4.0]])
    assert relative_difference(wanted + np.array([0.2, 0]), wanted) == pytest.approx(0.05)
    assert relative_difference(np.array([[1.0, np.nan]]), wanted) == np.inf
    assert relative_difference(wanted[0], wanted) == np.inf


# TIAToolbox's weights=


def script_of(text):
    """What was printed, up to the blank line before sentences."""
    return text.rsplit(")\n", 1)[0] + ")\n"


def run_script(text, slide, tmp_path, monkeypatch):
    """Run the printed script as it is, on our slide; return its variables."""
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(script_of(text).replace('"slide.svs"', repr(str(slide))), variables)
    return variables


def written(tmp_path, out, array):
    import zarr

    return np.asarray(zarr.open(next((tmp_path / out).glob("*.zarr")), mode="r")[array])


def test_classes_without_hidden_layers_go_into_tiatoolbox_s_own_class(tmp_path, slide, monkeypatch):
    name = saved(tmp_path, backbone="resnet18", hidden=())
    how = export_model(name, tmp_path / "x.pth", "pth")
    assert "tiaft" not in how
    engine = run_script(how, slide, tmp_path, monkeypatch)["engine"]
    assert type(engine.model).__name__ == "TimmModel"
    assert engine.model.class_dict == {0: "a", 1: "b", 2: "c"}
    monkeypatch.chdir(tmp_path)
    from tiaft_plugin.engine.extractor import TilePredictor

    ours = TilePredictor(name, verbose=False).run([slide], patch_mode=False, save_dir="ours")
    assert ours
    theirs = written(tmp_path, "out", "predictions")
    np.testing.assert_array_equal(theirs, written(tmp_path, "ours", "predictions"))
    assert len(theirs) > 20


def test_part_a_s_features_go_into_tiatoolbox_s_own_class(tmp_path, slide, monkeypatch):
    how = export_model(saved(tmp_path), tmp_path / "x.pth", "pth", features=True)
    assert "These are the features of Part A" in how
    run_script(how, slide, tmp_path, monkeypatch)
    # The same backbone without Part B, by tiaft's own engine.
    plain = network(classes="")
    plain.part_a.load_state_dict(network().part_a.state_dict())
    bare = save_model(plain, tmp_path / "plain.safetensors")
    from tiaft_plugin.engine.extractor import FeatureExtractor

    FeatureExtractor(bare, verbose=False).run([slide], patch_mode=False, save_dir="ours")
    ours, theirs = (written(tmp_path, out, "features") for out in ("ours", "out"))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5)


def test_the_paper_s_network_goes_through_tiaft_s_name_which_needs_no_file(tmp_path):
    net = network("legacy_xception", sorted(KATHER100K), tile_size=224, mpp=0.5, hidden=(2048,))
    save_model(net, tmp_path / "x.safetensors")
    how = export_model(str(tmp_path / "x.safetensors"), tmp_path / "x.pth", "pth")
    lines = script_of(how).splitlines()
    variables: dict = {}
    made = [line for line in lines if ".run(" not in line]
    exec("\n".join(made).replace('"x.pth"', repr(str(tmp_path / "x.pth"))), variables)
    tiles = check_tiles(224)[:2]
    with torch.inference_mode():
        wanted, features = net.probabilities(tiles), net.features(tiles)
        found = variables["predictor"].model(torch.from_numpy(tiles))
    order = [net.card.classes.index(name) for name in KATHER100K]
    torch.testing.assert_close(found, wanted[:, order], rtol=1e-4, atol=1e-6)
    run = variables["extractor"].run(tiles, patch_mode=True)
    np.testing.assert_allclose(run["features"], features, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changed", [{"mean": (0.4, 0.5, 0.5)}, {"hidden": (2048, 2048)}])
def test_a_network_that_only_looks_like_the_paper_s_is_refused(tmp_path, changed):
    card = {"tile_size": 224, "mpp": 0.5, "hidden": (2048,), **changed}
    path = saved(tmp_path, backbone="legacy_xception", classes=KATHER100K, **card)
    with pytest.raises(TiaftError, match="no class for a classifier with hidden layers: --featu"):
        export_model(path, tmp_path / "x.pth", "pth")


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({}, "no class for a classifier with hidden layers: --features exports Part A"),
        ({"hidden": (), "task": "multilabel"}, "give one class a tile, not labels"),
        ({"hidden": (), "backbone": "test_convnext", "tile_size": 64}, "cannot build test_convn"),
        ({"hidden": (), "backbone": "keras_xception", "tile_size": 64}, "keras_xception as this"),
    ],
)
def test_what_tiatoolbox_would_compute_otherwise_is_refused(tmp_path, card, said):
    path = saved(tmp_path, **card)
    with pytest.raises(TiaftError, match=said):
        export_model(path, tmp_path / "x.pth", "pth")
    assert not (tmp_path / "x.pth").exists()


def test_a_backbone_that_tiatoolbox_cuts_off_wrongly_is_refused(tmp_path):
    path = saved(tmp_path, classes="", backbone="test_convnext", tile_size=64)
    with pytest.raises(Stopped, match="gives other outputs with test_convnext than the network"):
        export_model(path, tmp_path / "x.pth", "pth")
    assert not (tmp_path / "x.pth").exists()


def test_the_documentation_has_the_script_as_it_is_printed(tmp_path):
    path = saved(
        tmp_path, backbone="legacy_xception", classes="", tile_size=224, mpp=0.5, hidden=()
    )
    printed = export_model(path, tmp_path / "x.pth", "pth")
    assert printed in (Path(__file__).parents[1] / "docs/models.md").read_text(encoding="utf-8")


def test_a_pth_is_plain_weights(tmp_path):
    export_model(saved(tmp_path, hidden=()), tmp_path / "x.pth", "pth")
    weights = torch.load(tmp_path / "x.pth", weights_only=True)
    assert {name.partition(".")[0] for name in weights} == {"feat_extract", "classifier"}


def test_unknown_resolution_is_left_to_be_filled_in(tmp_path):
    how = export_model(saved(tmp_path, hidden=(), mpp=None), tmp_path / "x.pth", "pth")
    assert '"resolution": MPP' in how


# Names, files and the command


def test_the_command_by_name(tmp_path, tiny_model):
    folder.add_model("tiny", tiny_model)
    done = tiaft("models", "export", "tiny", tmp_path / "x.pt", "--to", "torchscript")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "tracers' warnings are not for users"
    assert f"wrote {tmp_path / 'x.pt'}\n" in done.stdout
    assert "takes  uint8 tiles (N, 32, 32, 3), RGB, at 1 µm/px" in done.stdout
    assert "gives  probabilities (N, 3) of the classes a, b, c" in done.stdout
    found = run(tmp_path / "x.pt", check_tiles(32))
    with torch.inference_mode():
        np.testing.assert_allclose(found, load_model(tiny_model).probabilities(check_tiles(32)))


def test_a_features_name_exports_features(tmp_path, tiny_model):
    folder.add_model("tiny", tiny_model)
    how = export_model("tiny-features", tmp_path / "x.pt", "torchscript")
    assert "gives  features (N, 16)" in how
    assert run(tmp_path / "x.pt", check_tiles(32)).shape == (8, 16)


def test_a_file_of_another_format_s_name_is_refused(tmp_path, tiny_model):
    with pytest.raises(TiaftError, match=r"x\.pth: a file for --to onnx ends in \.onnx"):
        export_model(str(tiny_model), tmp_path / "x.pth", "onnx")


def test_a_model_for_normalised_stains_says_that_the_file_does_not(tmp_path):
    path = saved(tmp_path, training={"stain": {"name": "macenko", "target": "reference"}})
    how = export_model(path, tmp_path / "x.pt", "torchscript")
    assert "trained on stain-normalised tiles (macenko), which this file does not do" in how


def test_a_plugin_s_model_is_not_exported(tmp_path, monkeypatch):
    from tiaft_plugin import hookimpl
    from tiaft_plugin.plugins import plugin_manager

    class Plugin:
        @hookimpl
        def register_models(self, register):
            register("theirs", nn.Identity, tile_size=32, mpp=1.0)

    plugin = Plugin()
    plugin_manager().register(plugin, name="stranger")
    try:
        with pytest.raises(TiaftError, match="theirs is a model of plug-in stranger: only model f"):
            export_model("theirs", tmp_path / "x.pt", "torchscript")
    finally:
        plugin_manager().unregister(plugin)


def test_the_card_of_a_file_s_own_order_is_kept(tmp_path):
    path = saved(tmp_path, classes=sorted(KATHER100K))
    export_model(path, tmp_path / "x.pt", "torchscript")
    extra = {METADATA_KEY: ""}
    torch.jit.load(tmp_path / "x.pt", _extra_files=extra)
    assert json.loads(extra[METADATA_KEY])["classes"] == sorted(KATHER100K)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["legacy_xception", "inception_v3", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("to", WHOLE)
def test_backbones_of_the_recipes_and_a_transformer(tmp_path, backbone, to):
    size = 224 if "224" in backbone else 96
    net = network(backbone, tile_size=size)
    assert export_network(net, tmp_path / f"x{SUFFIXES[to][0]}", to) <= exporting.TOLERANCE
