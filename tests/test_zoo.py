"""Names in TIAToolbox: what a script gets that adds one import."""

import json
import pickle
import re

import numpy as np
import processes
import pytest
import torch
from conftest import TINY, run_python
from tiatoolbox import rcParam
from tiatoolbox.models import DeepFeatureExtractor, PatchPredictor
from tiatoolbox.models.architecture import get_pretrained_model

from tiaft_plugin import TiaftError, hookimpl
from tiaft_plugin.errors import Stopped
from tiaft_plugin.kather100k import KATHER100K
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.plugins import plugin_manager
from tiaft_plugin.zoo import folder
from tiaft_plugin.zoo.models import BatchOutput, TileFeatures
from tiaft_plugin.zoo.names import find, note_once
from tiaft_plugin.zoo.registry import open_doors, owner_of

ALPHABETICAL = sorted(KATHER100K)


def tiles(count, size=32, seed=0):
    shape = (count, size, size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def xception(tmp_path_factory):
    """A random Xception with the nine classes in another order than TIAToolbox's."""
    net = create_network("legacy_xception", ALPHABETICAL, init="random", mpp=0.5)
    return save_model(net, tmp_path_factory.mktemp("xception") / "x.safetensors")


@pytest.fixture
def tiny(tiny_model):
    """The tiny model, under the name `tiny`."""
    folder.add_model("tiny", tiny_model)
    return load_model(tiny_model)


def features(name, images, batch_size=4, **engine):
    extractor = DeepFeatureExtractor(name, batch_size=batch_size, verbose=False, **engine)
    return extractor.run(images, patch_mode=True)["features"]


# Names


def test_import_loads_no_torch_and_looks_at_no_plugin():
    heavy = "('torch', 'timm', 'zarr', 'numpy')"
    code = f"import tiaft_plugin, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_a_plugin_is_imported_only_for_a_name_that_nobody_else_has(tiny_model, tmp_path):
    folder.add_model("tiny", tiny_model)
    info = tmp_path / "site" / "heavy-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tiaft]\nheavy = heavy\n")
    (tmp_path / "site" / "heavy.py").write_text("print('heavy is imported')\n")
    code = (
        "import tiaft_plugin; from tiaft_plugin.zoo.names import find\n"
        "from tiatoolbox import rcParam; table = rcParam['pretrained_model_info']\n"
        "print([n in table for n in ('ftx2048', 'tiny', 'resnet18-kather100k')], flush=True)\n"
        "print(find('nobody-has-this'))\n"
    )
    said = run_python(code, PYTHONPATH=str(tmp_path / "site")).stdout.splitlines()
    assert said == ["[True, True, True]", "heavy is imported", "None"]


def test_the_three_names(xception, tmp_path):
    folder.add_model("xception-kather100k", xception)
    plain = create_network("legacy_xception", init="random", mpp=0.5)
    folder.add_model("imgnet2048", save_model(plain, tmp_path / "i.safetensors"))
    images = tiles(3, 224)

    predictor = PatchPredictor("xception-kather100k", batch_size=2, verbose=False)
    assert predictor.model.class_dict == dict(enumerate(KATHER100K))
    assert list(predictor.ioconfig.patch_input_shape) == [224, 224]
    assert predictor.ioconfig.input_resolutions == [{"resolution": 0.5, "units": "mpp"}]
    found = predictor.run(images, patch_mode=True, return_probabilities=True)["probabilities"]

    net = load_model(xception)
    with torch.inference_mode():
        expected = torch.softmax(net(images), -1).numpy()
        ftx, imgnet = net.features(images).numpy(), plain.features(images).numpy()
    in_order = [ALPHABETICAL.index(name) for name in KATHER100K]
    np.testing.assert_allclose(found, expected[:, in_order], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(features("ftx2048", images, 2), ftx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features("imgnet2048", images, 2), imgnet, rtol=1e-4, atol=1e-5)
    assert features("ftx2048", images, 2).shape == (3, 2048)


def test_a_file_added_as_ftx2048_is_its_model(xception):
    path = folder.add_model("ftx2048", xception)
    assert path.stem == "xception-kather100k"
    assert load_model(path).card.classes == KATHER100K
    assert find("ftx2048").view == "features"


def test_every_number_of_tiles_in_every_batch_size(tiny):
    extractor = DeepFeatureExtractor("tiny-features", verbose=False)
    predictor = PatchPredictor("tiny", verbose=False)
    images = tiles(9)
    with torch.inference_mode():
        expected = tiny.features(images).numpy()
    for count in (1, 2, 3, 4, 5, 8, 9):
        for batch_size in (1, 3, 4, 16):
            run = {"images": images[:count], "patch_mode": True, "batch_size": batch_size}
            found = extractor.run(**run)["features"]
            assert type(found) is np.ndarray
            np.testing.assert_allclose(found, expected[:count], rtol=1e-4, atol=1e-5)
            found = predictor.run(**run, return_probabilities=True)["probabilities"]
            assert found.shape == (count, 3) and type(found) is np.ndarray
            np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [7, 500])
def test_stock_engines_on_a_slide_lose_no_tile(tiny, slide, tmp_path, batch_size):
    import zarr

    extractor = DeepFeatureExtractor("tiny-features", batch_size=batch_size, verbose=False)
    out = extractor.run([slide], patch_mode=False, save_dir=tmp_path / "out")
    group = zarr.open(out[slide], mode="r")
    assert group["features"].shape == (group["coordinates"].shape[0], 16)
    predictor = PatchPredictor("tiny", batch_size=batch_size, verbose=False)
    out = predictor.run(
        [slide], patch_mode=False, save_dir=tmp_path / "p", return_probabilities=True
    )
    probabilities = zarr.open(out[slide], mode="r")["probabilities"]
    assert probabilities.shape == (group["features"].shape[0], 3)


def test_an_unused_name_is_still_unknown_to_tiatoolbox():
    with pytest.raises(ValueError, match=r"nobody-has-this.*does not exist"):
        get_pretrained_model("nobody-has-this")


def test_without_weights_the_error_says_how_to_get_some():
    with pytest.raises(TiaftError, match=r"xception-kather100k has no weights in .*finetune.*add"):
        DeepFeatureExtractor("ftx2048")
    with pytest.raises(TiaftError, match=r"imgnet2048 has no weights.*models create"):
        DeepFeatureExtractor("imgnet2048")


def test_a_feature_name_in_a_patch_predictor_is_refused_when_it_is_made(tiny):
    with pytest.raises(TiaftError, match="tiny-features gives features, not classes.*use tiny"):
        PatchPredictor("tiny-features")


def test_the_table_of_names(tiny):
    table = rcParam["pretrained_model_info"]
    assert "ftx2048" in table and "tiny-features" in table and "resnet18-kather100k" in table
    assert "nobody-has-this" not in table and table.get("nobody-has-this") is None
    assert {"ftx2048", "imgnet2048", "xception-kather100k"} <= set(table)
    assert set(table) == set(dict(table.items())) and len(table) == len(list(table))
    assert table["resnet18-kather100k"]["dataset"] == "kather100k"


def test_tiatoolbox_s_own_models_are_left_alone(monkeypatch, tmp_path):
    from tiatoolbox.models import architecture

    asked = {}
    monkeypatch.setattr(architecture, "hf_hub_download", lambda **kw: asked.update(kw) or "file")
    assert architecture.fetch_pretrained_weights("resnet18-kather100k") == "file"
    assert asked["filename"] == "resnet18-kather100k.pth"
    linear = torch.nn.Linear(2, 1)
    torch.save(linear.state_dict(), tmp_path / "w.pth")
    assert architecture.load_torch_model(torch.nn.Linear(2, 1), tmp_path / "w.pth").weight.equal(
        linear.weight
    )


def test_importing_tiatoolbox_s_models_first_changes_nothing(tiny_model, model_folder):
    folder.add_model("tiny", tiny_model)
    code = (
        "from tiatoolbox.models import DeepFeatureExtractor, PatchPredictor\n"
        "import tiaft_plugin, numpy as np\n"
        "x = np.zeros((3, 32, 32, 3), np.uint8)\n"
        "run = DeepFeatureExtractor('tiny-features', verbose=False, batch_size=2).run\n"
        "print('shape', run(x, patch_mode=True)['features'].shape)\n"
        "try: PatchPredictor('tiny-features')\n"
        "except tiaft_plugin.TiaftError: print('refused')\n"
    )
    said = processes.run(code).stdout
    assert "shape (3, 16)" in said and "refused" in said


# Fresh processes


def test_a_model_unpickles_in_a_fresh_process(tiny, tmp_path):
    model, _ = get_pretrained_model("tiny-features")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps((model, model.preproc_func)))
    code = (
        "import pickle, torch\n"
        f"model, preproc = pickle.load(open({str(tmp_path / 'model.pkl')!r}, 'rb'))\n"
        "print('shape', tuple(model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape))\n"
    )
    assert "shape (2, 16)" in processes.run(code).stdout


@pytest.mark.slow
def test_spawned_workers(tiny_model, slide, tmp_path):
    folder.add_model("tiny", tiny_model)
    code = (
        "import torch, zarr, tiaft_plugin\n"
        "from tiatoolbox.models import DeepFeatureExtractor\n"
        "torch.multiprocessing.set_start_method('spawn')\n"
        "engine = DeepFeatureExtractor('tiny-features', num_workers=1, verbose=False)\n"
        f"save_dir = {str(tmp_path / 'o')!r}\n"
        f"out = engine.run([{str(slide)!r}], patch_mode=False, save_dir=save_dir)\n"
        "print('shape', zarr.open(list(out.values())[0])['features'].shape)\n"
    )
    done = processes.run(code)  # the worker it spawns is a fresh process
    assert "16)" in done.stdout, done.stderr


@pytest.mark.slow
def test_dask_s_processes(tiny):
    dask = pytest.importorskip("dask")
    model, _ = get_pretrained_model("tiny-features")

    def shape_of_features(model):  # goes there by value, so that all is imported for the model
        return tuple(model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape)

    found = dask.delayed(shape_of_features)(model)
    assert found.compute(scheduler="processes", num_workers=1) == (2, 16)


def test_a_model_goes_through_cloudpickle(tiny, tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")
    model, _ = get_pretrained_model("tiny-features")
    (tmp_path / "call.pkl").write_bytes(cloudpickle.dumps(lambda tiles: tuple(model(tiles).shape)))
    code = (
        "import pickle, torch\n"
        f"call = pickle.load(open({str(tmp_path / 'call.pkl')!r}, 'rb'))\n"
        "print('shape', call(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)))\n"
    )
    assert "shape (2, 16)" in processes.run(code).stdout


# weights=


def test_weights_override(tiny, tmp_path):
    other = create_network(TINY, "abc", init="random", tile_size=32, mpp=1.0, hidden=(16,), seed=1)
    path = save_model(other, tmp_path / "other.safetensors")
    torch.save(other.state_dict(), tmp_path / "other.pth")
    images = tiles(2)
    with torch.inference_mode():
        expected = other.features(images).numpy()
    for weights in (path, str(path), tmp_path / "other.pth"):
        found = features("tiny-features", images, weights=weights)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(features("tiny-features", images), expected)


def test_weights_of_a_built_in_name_are_put_in_order(xception):
    model, _ = get_pretrained_model("xception-kather100k", xception)
    assert model.net.card.classes == KATHER100K
    images = tiles(1, 224)
    with torch.inference_mode():
        expected = load_model(xception)(images)[0, ALPHABETICAL.index("TUM")]
        assert torch.allclose(model.net(images)[0, KATHER100K.index("TUM")], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"classes": "abcd"}, "other classes"),
        ({"tile_size": 64}, "other classes, tile size"),
        ({"mpp": 0.25}, "other classes, tile size or µm/px"),
    ],
)
def test_weights_of_another_kind_are_refused(tiny, tmp_path, change, fault):
    card = {"classes": "abc", "tile_size": 32, "mpp": 1.0, "hidden": (16,), **change}
    path = save_model(create_network(TINY, init="random", **card), tmp_path / "o.safetensors")
    with pytest.raises(TiaftError, match=fault):
        get_pretrained_model("tiny", path)


def test_a_built_in_name_keeps_its_promise(tiny_model, tmp_path):
    with pytest.raises(TiaftError, match=r"xception-kather100k promises something else.*backbone"):
        folder.add_model("xception-kather100k", tiny_model)
    with pytest.raises(TiaftError, match="missing|no such file"):
        get_pretrained_model("xception-kather100k", tmp_path / "nowhere.safetensors")


# The folder


def test_add_list_show_verify_remove(tiny_model, model_folder):
    from tiaft_plugin.zoo.table import describe_model, model_rows, verify_model

    path = folder.add_model("lab-model", tiny_model)
    assert path.read_bytes() == tiny_model.read_bytes()
    rows = {row[0]: row for row in model_rows()}
    assert rows["lab-model"][1:3] == ("3 classes", "32 px at 1 µm/px")
    assert rows["lab-model-features"][1] == "features" and "ftx2048" in rows
    assert "tiny.safetensors" in describe_model("lab-model")
    assert str(tiny_model.parent) not in folder._note_file("lab-model").read_text()
    assert verify_model("lab-model").startswith("lab-model: sound, SHA-256")
    with pytest.raises(TiaftError, match="there is a model lab-model already"):
        folder.add_model("lab-model", tiny_model)
    folder.remove_model("lab-model")
    assert list(model_folder.iterdir()) == []
    with pytest.raises(TiaftError, match="there is no model lab-model"):
        folder.remove_model("lab-model")


def test_colleagues_may_read_a_model_file(tiny_model):
    assert tiny_model.stat().st_mode & 0o044 == 0o044
    assert folder.add_model("shared", tiny_model).stat().st_mode & 0o044 == 0o044


def test_remove_stays_in_the_folder(tiny_model, model_folder, tmp_path):
    model_folder.mkdir()
    outside = tmp_path / "mine.safetensors"
    outside.write_bytes(tiny_model.read_bytes())
    with pytest.raises(TiaftError, match="there is no model"):
        folder.remove_model("../mine")
    assert outside.exists() and find("../mine") is None


def test_verify_finds_a_file_that_was_exchanged(tiny_model):
    from tiaft_plugin.zoo.table import verify_model

    path = folder.add_model("lab", tiny_model)
    net = create_network(TINY, "abc", init="random", tile_size=32, mpp=1.0, hidden=(16,), seed=5)
    save_model(net, path, overwrite=True)
    with pytest.raises(Stopped, match="is not the file that was added"):
        verify_model("lab")
    path.write_text("nothing")
    for damaged in ("lab", str(path)):
        with pytest.raises(Stopped, match="not a whole safetensors file"):
            verify_model(damaged)
    for unknown in ("nobody-has-this", "nowhere.safetensors"):
        with pytest.raises(TiaftError, match="no model|no such") as caught:
            verify_model(unknown)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("resnet18-kather100k", "is a model of TIAToolbox"),
        ("UNI", "is a model of TIAToolbox"),
        ("legacy_xception", "is a model of timm"),
        ("maxvit_t", "is a model of torchvision"),
        ("a/b", "cannot name a model"),
        ("../escape", "cannot name a model"),
        ("my-features", "cannot name a model"),
        ("", "cannot name a model"),
    ],
)
def test_names_that_are_refused(tiny_model, name, fault):
    with pytest.raises(TiaftError, match=fault):
        folder.add_model(name, tiny_model)


def test_a_model_without_resolution_needs_one(tmp_path):
    net = create_network(TINY, "ab", init="random", tile_size=32, hidden=(4,))
    path = save_model(net, tmp_path / "m.safetensors")
    with pytest.raises(TiaftError, match="does not say its tiles' µm/px.*--mpp"):
        folder.add_model("lab", path)
    folder.add_model("lab", path, mpp=0.25)
    assert find("lab").mpp == 0.25


def test_a_damaged_file_in_the_folder_is_named(model_folder):
    from tiaft_plugin.zoo.table import model_rows

    model_folder.mkdir()
    (model_folder / "broken.safetensors").write_text("nothing")
    assert ("broken", "damaged") in [row[:2] for row in model_rows()]
    with pytest.raises(TiaftError, match="not a whole safetensors file"):
        get_pretrained_model("broken")


# Sources


def test_https_needs_and_checks_the_hash(tiny_model, tmp_path, monkeypatch):
    import hashlib
    import http.server
    import ssl
    import threading
    from functools import partial

    trustme = pytest.importorskip("trustme", reason="trustme makes the test's certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tiny_model.parent))
    server = http.server.HTTPServer(("localhost", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"https://localhost:{server.server_address[1]}/tiny.safetensors"
    try:
        with pytest.raises(TiaftError, match="an address needs --sha256"):
            folder.add_model("web", address)
        with pytest.raises(TiaftError, match="has SHA-256 .*, not 00.*it is not used"):
            folder.add_model("web", address, sha256="00" * 32)
        digest = hashlib.sha256(tiny_model.read_bytes()).hexdigest()
        assert (
            folder.add_model("web", address, sha256=digest).read_bytes() == tiny_model.read_bytes()
        )
        assert json.loads(folder._note_file("web").read_text())["source"] == address
        with pytest.raises(TiaftError, match="cannot be had: .*404"):
            folder.add_model("web2", address + "x", sha256=digest)
    finally:
        server.shutdown()


def test_hugging_face_sources(tiny_model, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo, file, *, revision):
        asked.append((repo, file, revision))
        return str(tiny_model)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    folder.add_model("hub", "hf://lab/models/sub/tiny.safetensors@v1")
    assert asked == [("lab/models", "sub/tiny.safetensors", "v1")]
    with pytest.raises(TiaftError, match="write hf://owner/repo/file@revision"):
        folder.add_model("hub2", "hf://lab/models/tiny.safetensors")


@pytest.mark.parametrize("source", ["http://x/y", "ftp://x/y", "file:///etc/passwd"])
def test_other_sources_are_refused(source):
    with pytest.raises(TiaftError, match="only files, hf:// and https:// sources are read"):
        folder.add_model("x", source)


# Plug-ins' models


class Stranger(torch.nn.Module):
    """Mean colour: features (N, 3)."""

    def forward(self, tiles):
        return tiles.float().mean((1, 2))


class LosesRows(Stranger):
    def forward(self, tiles):
        return super().forward(tiles)[:1]


@pytest.fixture
def register():
    """Register models as a plug-in would, for one test."""
    added = []

    def add(**models):
        class Plugin:
            @hookimpl
            def register_models(self, register):
                for name, load in models.items():
                    register(name, load, tile_size=32, mpp=1.0)

        added.append(Plugin())
        plugin_manager().register(added[-1], name="stranger")

    yield add
    for plugin in added:
        plugin_manager().unregister(plugin)


def test_a_plugin_s_model_by_name(register):
    register(mean_colour=Stranger)
    images = tiles(5)
    found = features("mean_colour", images, batch_size=2)
    np.testing.assert_allclose(found, images.mean((1, 2)), rtol=1e-4)
    with pytest.raises(TiaftError, match="mean_colour is a model of plug-in stranger"):
        folder.check_name("mean_colour")


def test_a_plugin_s_model_is_checked_before_it_is_used(register):
    register(bad=LosesRows)
    with pytest.raises(TiaftError, match="plug-in stranger, model bad: "):
        get_pretrained_model("bad")


def test_a_plugin_cannot_take_tiaft_s_names(register, capsys):
    note_once.cache_clear()
    register(ftx=Stranger, **{"xception-kather100k": Stranger})
    assert find("ftx").plugin == "stranger" and find("xception-kather100k").plugin == "zoo"
    assert find("other") is None
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "zoo and stranger both register 'xception-kather100k'" in said[0]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("legacy_xception", "legacy_xception is a model of timm"),
        ("UNI", "UNI is a model of TIAToolbox"),
        ("maxvit_t", "maxvit_t is a model of torchvision"),
        ("mine-features", "'mine-features' cannot name a model: .*no -features at the end"),
        ("ftx2048", "ftx2048 is a model of tiaft"),
    ],
)
def test_names_that_a_plugin_is_refused(register, name, fault):
    from tiaft_plugin.zoo.table import model_rows

    register(**{name: Stranger})
    row = next(row for row in model_rows() if row[0] == name and row[1] == "damaged")
    assert re.search(f"plug-in stranger registers a model: {fault}", row[3])
    if name != "ftx2048":  # that one is tiaft's, whoever registers it
        with pytest.raises(TiaftError, match=f"plug-in stranger registers a model: {fault}"):
            find(name)


def test_a_plugin_s_load_that_fails_is_named(register):
    def load():
        raise OSError("disk\ngone")

    register(bad=load)
    with pytest.raises(
        TiaftError, match=r"plug-in stranger, model bad: its load\(\) failed: OSE.*k$"
    ):
        get_pretrained_model("bad")


class Half(torch.nn.Linear):
    """Features (N, 2) by weights in bfloat16."""

    def __init__(self, seed):
        super().__init__(3, 2, dtype=torch.bfloat16)
        torch.nn.init.constant_(self.weight, seed)
        torch.nn.init.zeros_(self.bias)

    def forward(self, tiles):
        return super().forward(tiles.float().mean((1, 2)).bfloat16())


def test_the_identity_of_a_plugin_s_model(register, monkeypatch):
    register(one=lambda: Half(1), same=lambda: Half(1), other=lambda: Half(2))
    monkeypatch.setattr("tiaft_plugin.zoo.checks.check_model", lambda *args, **kwargs: None)

    def identity(name):
        return TileFeatures(name).load(None).sha256

    assert re.fullmatch("[0-9a-f]{64}", identity("one")) and identity("one") == identity("one")
    assert len({identity("one"), identity("same"), identity("other")}) == 3
    before = identity("one")
    monkeypatch.setitem(plugin_manager().sources, "stranger", "stranger 2.0")
    assert identity("one") != before


# Faults elsewhere do not stop a lookup


def test_the_table_goes_on_beside_faults(register, model_folder, capsys):
    note_once.cache_clear()
    register(mean_colour=Stranger)
    plugin = type("Bad", (), {"register_models": hookimpl(lambda self, register: 1 / 0)})()
    plugin_manager().register(plugin, name="bad")
    model_folder.mkdir()
    for name in ("damaged", "xception-kather100k"):
        (model_folder / f"{name}.safetensors").write_text("nothing")
    table = rcParam["pretrained_model_info"]
    try:
        assert "unknown" not in table and "x" * 300 not in table and "../x" not in table
        assert table.get("mean_colour")
        assert "damaged" in table and table.get("unknown", 1) == 1
        with pytest.raises(TiaftError, match=r"damaged\.safetensors is not a whole safetensors"):
            table["damaged"]
        assert "imgnet2048" in dict(table.items()) and len(table.values()) == len(table) - 2
        with pytest.raises(KeyError):
            table["unknown"]
    finally:
        plugin_manager().unregister(plugin)
    said = capsys.readouterr().err
    assert said.count("plug-in bad failed in register_models: ZeroDivisionError") == 1
    assert said.count("xception-kather100k.safetensors is not a whole safetensors file") == 1


def test_a_name_that_somebody_adds_to_the_table_is_there_once():
    table = rcParam["pretrained_model_info"]
    before = len(table)
    table["ftx2048"] = {"mine": True}
    try:
        assert len(table) == before == len(set(table)) and table["ftx2048"] == {"mine": True}
    finally:
        dict.__delitem__(table, "ftx2048")


def test_half_written_files_are_no_models(tiny_model, model_folder):
    folder.add_model("tiny", tiny_model)
    (model_folder / ".tiny-abc.safetensors").write_bytes(b"half")
    assert folder.names() == ["tiny"]


# When TIAToolbox changes


def test_all_doors_are_open():
    assert open_doors() == []


@pytest.mark.parametrize("gone", ["fetch_pretrained_weights", "load_torch_model"])
def test_a_tiatoolbox_without_our_doors_works_without_us(gone):
    code = (
        "import tiaft_plugin, sys\n"
        "from tiaft_plugin.zoo import registry\n"
        "change = registry.AFTER_IMPORT['tiatoolbox.models.architecture']\n"
        "def without(module):\n"
        f"    del module.{gone}\n"
        "    change(module)\n"
        "registry.AFTER_IMPORT['tiatoolbox.models.architecture'] = without\n"
        "import tiatoolbox.models\n"
        "print('imported', len(registry.open_doors()))\n"
    )
    done = processes.run(code)
    assert "imported" in done.stdout and "imported 0" not in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("tiaft: ")]
    assert re.match(r"tiaft: tiaft's model names do not work with TIAToolbox \d.*" + gone, lines[0])


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("resnet18-kather100k", "TIAToolbox"),
        ("legacy_xception", "timm"),
        ("maxvit_t", "torchvision"),
        ("ftx2048", ""),
    ],
)
def test_the_owner_of_a_name(name, owner):
    assert owner_of(name) == owner


# The return value that serves both of TIAToolbox's ways


def test_a_batch_output_is_an_ordinary_array_but_for_its_first_row():
    plain = np.arange(6.0).reshape(3, 2)
    output = plain.view(BatchOutput)
    assert output[0].shape == (3, 2) and output[1].tolist() == [2, 3]
    assert [row.tolist() for row in output] == plain.tolist()
    assert output[np.int64(0)].tolist() == [0, 1] and output[False].shape == (0, 3, 2)
    assert output[:2].shape == (2, 2) and type(output[:2]) is np.ndarray
    assert type(output + 1) is np.ndarray and type(output.mean(0)) is np.ndarray
    assert type(np.concatenate([output, output])) is np.ndarray
    assert isinstance(output.sum(), float)
