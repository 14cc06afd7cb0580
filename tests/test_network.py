"""The network, its file and card, and the ways in for its weights."""

import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from tiaft_plugin import hookimpl
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import (
    Card,
    Network,
    create_network,
    init_part_a,
    load_model,
    read_card,
    reorder_classes,
    save_model,
)
from tiaft_plugin.network.backbone import create_backbone, default_normalisation
from tiaft_plugin.network.card import METADATA_KEY, card_from_json
from tiaft_plugin.network.weights import fill_part_a, sha256_of_weights
from tiaft_plugin.plugins import plugin_manager

SMALL = "mobilenetv3_small_050"
SIZE = 64  # px
CLASSES = ("TUM", "STR", "LYM")


def network(backbone=SMALL, classes=CLASSES, hidden=(16,), tile_size=SIZE, **card) -> Network:
    torch.manual_seed(1)
    return Network(Card(backbone, tile_size, 0.5, classes, hidden, **card)).eval()


def some_tiles(count=3, size=SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def net() -> Network:
    return network()


@pytest.fixture
def file(net, tmp_path) -> Path:
    return save_model(net, tmp_path / "model.safetensors")


# The network


@pytest.mark.parametrize("hidden", [(2048,), (32, 16), ()])
def test_features_are_part_bs_last_hidden_outputs_after_their_relu(hidden):
    net, tiles = network(hidden=hidden), some_tiles()
    pixels = torch.tensor(tiles).permute(0, 3, 1, 2) / 255
    values = net.part_a((pixels - 0.5) / 0.5)
    for number in range(1, len(hidden) + 1):
        layer = net.part_b.hidden.get_submodule(f"fc{number}")
        values = (values @ layer.weight.T + layer.bias).clamp(min=0)
    features = net.features(tiles)
    torch.testing.assert_close(features, values)
    assert features.shape == (3, net.feature_width)
    if hidden:
        assert 0 < (features == 0).sum() < features.numel()  # the ReLU is in
    logits = values @ net.part_b.classifier.weight.T + net.part_b.classifier.bias
    torch.testing.assert_close(net(tiles), logits)


def test_numpy_and_torch_tiles_give_the_same():
    net, tiles = network(), some_tiles()
    wanted = net(torch.tensor(tiles))
    frozen = tiles.copy()
    frozen.setflags(write=False)
    for same in (tiles, frozen, np.asfortranarray(tiles), tiles[::-1].copy()[::-1]):
        assert torch.equal(net(same), wanted)


def test_normalisation_follows_the_card():
    net = network(mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 1.0))
    found = net.normalise(np.full((1, SIZE, SIZE, 3), 51, dtype=np.uint8))[0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.5, -0.6, -0.7]))


@pytest.mark.parametrize(
    ("tiles", "text"),
    [
        (np.zeros((2, 64, 64, 3), "float32"), "tiles are float32: this network takes uint8 pixels"),
        (torch.zeros((2, 64, 64, 3)), "tiles are float32: this network takes uint8 pixels"),
        (np.zeros((2, 64, 64, 3), ">u2"), "tiles are >u2: this network takes uint8"),
        (np.zeros((2, 3, 64, 64), "uint8"), r"shape \(2, 3, 64, 64\): RGB tiles .* expected"),
        (np.zeros((2, 64, 64, 4), "uint8"), r"shape \(2, 64, 64, 4\): RGB tiles"),
        (np.zeros((64, 64, 3), "uint8"), r"shape \(64, 64, 3\): RGB tiles"),
        (np.zeros((2, 32, 48, 3), "uint8"), r"48×32 px: this model was made for 64×64 px at 0\.5"),
        ([[0]], "tiles are a list: a torch tensor or numpy array"),
        (None, "tiles are a NoneType"),
    ],
)
def test_wrong_tiles_are_refused(net, tiles, text):
    for call in (net, net.features):
        with pytest.raises(TiaftError, match=text):
            call(tiles)


def test_a_network_without_classes_gives_features_only():
    net = network(classes=(), hidden=())
    assert net.features(some_tiles()).shape == (3, net.feature_width)
    with pytest.raises(TiaftError, match=r"no classes: it gives features only"):
        net(some_tiles())


# A class token, a norm after pooling, a wide head: what cutting off the last child gets wrong.
@pytest.mark.parametrize(
    "backbone",
    [
        "vit_tiny_patch16_224",
        "convnext_atto",
        SMALL,
        "regnetx_002",
        "test_vit",
        "test_efficientnet",
    ],
)
def test_features_of_any_timm_family_are_timms_own(backbone):
    net = network(backbone, classes=(), hidden=())
    size = {"img_size": SIZE} if "vit" in backbone else {}
    own = timm.create_model(backbone, pretrained=False, num_classes=0, **size).eval()
    own.load_state_dict(net.part_a.state_dict())
    tiles = some_tiles(2)
    wanted = own((torch.tensor(tiles).permute(0, 3, 1, 2) - 127.5) / 127.5)
    torch.testing.assert_close(net.features(tiles), wanted)
    assert net.feature_width == wanted.shape[1]


def test_a_tile_gives_the_same_in_any_batch(net):
    tiles = some_tiles(5)
    alone = torch.cat([net(tile[None]) for tile in tiles])
    torch.testing.assert_close(net(tiles), alone, rtol=1e-4, atol=1e-5)
    assert net(tiles[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("backbone", "args", "text"),
    [
        ("mobilenetv3_smal_050", {}, r"did you mean .*mobilenetv3_small_050"),
        ("hf-hub:someone/model", {}, "timm has no backbone"),
        (SMALL, {"nonsense": 1}, "mobilenetv3_small_050 with .*nonsense.* cannot be built"),
        (SMALL, {"global_pool": ""}, "features need a pooling"),
        (SMALL, {"num_classes": 3, "in_chans": 1}, "backbone_args in_chans, num_classes: refused"),
    ],
)
def test_backbones_that_cannot_be_built_are_refused(backbone, args, text):
    with pytest.raises(TiaftError, match=text):
        create_backbone(backbone, SIZE, args)


class Stranger:
    """A plug-in with one backbone, and one that is timm's without its last block."""

    def __init__(self, width=3):
        self.width = width

    @hookimpl
    def create_backbone(self, name, args):
        if name == f"{SMALL}:short":
            part = create_backbone(SMALL, SIZE)
            del part.blocks[-1]
            return part
        backbone = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        backbone.num_features = self.width
        return {"means": backbone, "wrong": nn.Identity()}.get(name)


@pytest.fixture
def stranger():
    plugin = Stranger()
    plugin_manager().register(plugin, name="stranger")
    yield plugin
    plugin_manager().unregister(plugin)


def test_a_plugin_s_backbone_is_rebuilt_from_its_file(stranger, tmp_path):
    """create_backbone, the hook."""
    net = create_network("means", CLASSES, init="random", tile_size=SIZE)
    path = save_model(net, tmp_path / "m.safetensors")
    torch.testing.assert_close(load_model(path)(some_tiles()), net(some_tiles()))
    with pytest.raises(TiaftError, match=r"no ImageNet weights of means: pass --init FILE or rand"):
        create_network("means", CLASSES)
    with pytest.raises(TiaftError, match=r"'wrong' is no module with a width, num_features"):
        create_backbone("wrong", SIZE)
    plugin_manager().unregister(stranger)
    with pytest.raises(TiaftError, match=r"m.safetensors: timm has no backbone 'means', nor has a"):
        load_model(path)
    plugin_manager().register(stranger, name="stranger")


def test_a_part_of_a_backbone_takes_its_weights_and_normalisation(stranger, tmp_path):
    whole = create_network(SMALL, CLASSES, init="random", tile_size=SIZE, mean=(0.1, 0.2, 0.3))
    path = save_model(whole, tmp_path / "whole.safetensors")
    part = create_network(f"{SMALL}:short", CLASSES, init=str(path), tile_size=SIZE)
    assert part.card.mean == (0.1, 0.2, 0.3)
    weights = whole.part_a.state_dict()
    assert all(
        torch.equal(value, weights[name]) for name, value in part.part_a.state_dict().items()
    )
    assert default_normalisation("resnet18:x") == default_normalisation("resnet18")
    other = save_model(network("resnet10t"), tmp_path / "other.safetensors")
    with pytest.raises(TiaftError, match="its backbone is resnet10t"):
        init_part_a(part, str(other))
    tensors = {**load_file(path), "part_a.nobody.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(TiaftError, match="has no part_a.nobody.weight"):
        fill_part_a(part, tensors, tmp_path / "odd.safetensors")


def test_normalisation_of_a_backbone_is_that_of_its_weights():
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert default_normalisation("legacy_xception") == half
    assert default_normalisation("keras_xception") == half
    assert default_normalisation("resnet18")[0] == (0.485, 0.456, 0.406)


def test_reordered_classes_keep_their_probabilities(net):
    tiles = some_tiles()
    before = net(tiles).clone()
    reorder_classes(net, ("LYM", "TUM", "STR"))
    assert net.card.classes == ("LYM", "TUM", "STR")
    torch.testing.assert_close(net(tiles), before[:, [2, 0, 1]])
    for wrong in (("LYM", "TUM"), ("LYM", "TUM", "ADI"), ("LYM", "TUM", "STR", "STR")):
        with pytest.raises(
            TiaftError, match=r"the model's classes are LYM, TUM, STR; .* are needed"
        ):
            reorder_classes(net, wrong)


# The file


def test_a_loaded_model_is_the_saved_one_to_the_bit(net, file, tmp_path):
    again = load_model(file)
    assert again.card == net.card
    assert not again.training
    assert torch.equal(again(some_tiles()), net(some_tiles()))
    assert save_model(again, tmp_path / "again").read_bytes() == file.read_bytes()


def test_an_existing_file_is_overwritten_only_if_asked(net, file):
    before = file.read_bytes()
    other = network(classes=("A", "B"))
    with pytest.raises(TiaftError, match=r"model\.safetensors exists already"):
        save_model(other, file)
    assert file.read_bytes() == before
    save_model(other, file, overwrite=True)
    assert read_card(file).classes == ("A", "B")
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_a_place_that_cannot_be_written_is_named(net, file, tmp_path):
    for path in (file / "x.safetensors", Path("/proc/none/x.safetensors")):
        with pytest.raises(TiaftError, match=r"x\.safetensors cannot be written"):
            save_model(net, path)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(TiaftError, match="folder cannot be written"):
        save_model(net, folder, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "model.safetensors"]


SAVE_FOR_EVER = """
import sys
from tiaft_plugin.network import Card, Network, save_model
nets = [Network(Card("test_efficientnet", 64, 0.5, list(c), (512,))) for c in ("AB", "CDE")]
while True:
    for net in nets:
        save_model(net, sys.argv[1], overwrite=True)
        print("saved", flush=True)
"""


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    started = []
    for wait in (0.0, 0.007):  # both at once: starting them takes most of the time
        path = tmp_path / f"{wait}.safetensors"
        command = [sys.executable, "-c", SAVE_FOR_EVER, str(path)]
        started.append((wait, path, subprocess.Popen(command, stdout=subprocess.PIPE)))
    for wait, path, process in started:
        for _ in range(3):
            assert process.stdout.readline() == b"saved\n"
        for _ in range(15):  # whole for whoever looks while it is written, too
            assert load_model(path).card.classes in (("A", "B"), ("C", "D", "E"))
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        load_model(path)


@pytest.mark.parametrize("share", [0, 1e-4, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_files_are_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(TiaftError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(file)


@pytest.mark.parametrize("content", [b"just text, no weights", b"\xff" * 100, b"\x80\x02N."])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(TiaftError, match="is not a whole safetensors file"):
        load_model(path)


@pytest.mark.parametrize("name", ["", "none.safetensors", "a\0b", "x" * 5000])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(TiaftError, match="no such model file"):
        load_model(str(tmp_path / name))


def test_weights_without_a_card_are_told_how_to_get_one(net, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(net.part_a.state_dict(), path)
    with pytest.raises(
        TiaftError, match=r"no tiaft model card: .*tiaft models create FILE .*--init"
    ):
        load_model(path)


def test_an_unusable_device_is_named(file):
    with pytest.raises(TiaftError, match="device 'nonsense' cannot be used"):
        load_model(file, device="nonsense")


def with_card(file: Path, change, tensors=None) -> Path:
    """Rewrite a model file with changed fields of its card (None takes one out), or other text."""
    values = json.loads(read_card(file).to_json())
    if isinstance(change, dict):
        values |= change
        text = json.dumps({k: v for k, v in values.items() if change.get(k, 0) != "absent"})
    else:
        text = change
    save_file(tensors or load_file(file), file, metadata={METADATA_KEY: text})
    return file


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": "absent"}, "classes missing"),
        ({"classes": None}, "classes is None, not a list"),
        ({"classes": "TUM"}, "classes is 'TUM', not a list"),
        ({"classes": ["TUM", "STR"]}, r"names 2 classes \(TUM, STR\), the classifier has 3"),
        ({"classes": ["TUM", "STR", "TUM"]}, "name one class twice"),
        ({"classes": ["TUM", "STR", " "]}, "not all names"),
        ({"classes": ["TUM", "STR", "a\nb"]}, "not all names"),
        ({"classes": ["TUM", "STR", ["LYM"]]}, "not all names"),
        ({"classes": []}, "Part B needs a class list"),
        ({"classes": [], "hidden": []}, r"names 0 classes \(none\), the classifier has 3"),
        ({"classes": ["TUM"]}, "one class is no choice"),
        ({"mpp": "absent"}, "mpp missing"),
        ({"mpp": 0}, "mpp is 0, not a positive number"),
        ({"mpp": -0.5}, "mpp is -0.5"),
        ({"mpp": "0.5"}, "mpp is '0.5'"),
        ({"mpp": float("nan")}, "mpp is nan"),
        ({"mpp": 10**400}, "mpp is 1000"),
        ({"tile_size": 0}, "tile_size is 0"),
        ({"tile_size": 64.0}, "tile_size is 64.0"),
        ({"hidden": [16, -1]}, "not widths"),
        ({"hidden": [32]}, "hidden layer 1 has 32 units, the weights .16"),
        ({"hidden": [16, 1_000_000]}, "hidden layer 2 has 1000000 units, the weights none"),
        ({"hidden": []}, r"card and weights do not fit: part_b\.classifier\.weight"),
        ({"backbone": "regnetx_002"}, "card and weights do not fit"),
        ({"backbone": "nonsense"}, "timm has no backbone 'nonsense'"),
        ({"backbone": 3}, "backbone is 3, not a name"),
        (
            {"backbone_args": {"checkpoint_path": "/x.pth"}},
            "backbone_args checkpoint_path: refused",
        ),
        ({"backbone_args": ["x"]}, "are not all objects"),
        ({"mean": [0.5]}, "one value for each of red, green and blue"),
        ({"std": [0.5, 0.5, 0]}, "cannot normalise"),
        ({"version": 2}, "version 2 is newer than this tiaft_plugin reads .* upgrade"),
        ({"version": "1"}, "version is '1'"),
        ({"licence": 3}, "not all texts"),
        ({"task": "other"}, "task is 'other', and .* reads models of classes, multilabel only"),
        ({"task": None}, "task is None"),
        ({"backbone_args": {"act_layer": {"x": 1}}}, "backbone_args act_layer is {'x': 1}: texts"),
        ({"backbone_args": {"embed_dim": 20_000}}, "embed_dim is 20000: .* numbers up to 8192"),
        ({"backbone_args": {"depths": [1] * 9}}, "depths is .*lists of eight"),
        ({"backbone_args": {"depths": [[1]]}}, "depths is"),
        ({"backbone_args": {"x": 10**400}}, "backbone_args x is 1000"),
        ({"backbone_args": {"x": float("nan")}}, "backbone_args x is nan"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_wrong_cards_are_refused(file, change, text):
    with pytest.raises(TiaftError, match=text) as caught:
        load_model(with_card(file, change))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "args", "text"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 8190, "depth": 8}, "card and weights do not fit"),
        ("resnet18", {"layers": [99, 2, 2, 2]}, "card and weights do not fit"),
        ("regnetz_040_h", {"stem_width": 8192}, "cannot be built"),
    ],
)
def test_a_giant_network_is_refused_before_memory_is_taken(file, backbone, args, text):
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TiaftError, match=text):
        load_model(with_card(file, {"backbone": backbone, "backbone_args": args}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB


def test_a_backbone_that_cannot_be_built_without_memory_loads(tmp_path):
    net = network("regnetv_040", backbone_args={"drop_path_rate": 0.1})
    path = save_model(net, tmp_path / "r.safetensors")
    assert torch.equal(load_model(path)(some_tiles()), net(some_tiles()))


def test_older_files_name_no_task(file):
    assert load_model(with_card(file, {"task": "absent"})).card.task == "classes"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_identity_of_weights(dtype):
    one, other = (torch.nn.BatchNorm1d(3).to(dtype) for _ in range(2))
    assert sha256_of_weights(one) == sha256_of_weights(other)
    other.running_mean[1] = 0.5
    assert sha256_of_weights(one) != sha256_of_weights(other)
    assert sha256_of_weights(one) != sha256_of_weights(torch.nn.BatchNorm1d(3).double())


def test_fields_a_later_version_adds_do_not_hurt(file):
    assert load_model(with_card(file, {"colour": "red"})).card == network().card


def test_weights_that_are_not_numbers_are_refused(file):
    tensors = load_file(file)
    tensors["part_b.classifier.bias"][1] = float("nan")
    with pytest.raises(TiaftError, match=r"NaN or infinity \(part_b\.classifier\.bias\)"):
        load_model(with_card(file, {}, tensors))


def test_tensors_that_nobody_wants_or_that_lack_are_named(file):
    tensors = load_file(file)
    with pytest.raises(TiaftError, match="extra should be absent, is"):
        load_model(with_card(file, {}, tensors | {"extra": torch.ones(3)}))
    del tensors["part_b.hidden.fc1.weight"]
    with pytest.raises(TiaftError, match=r"fc1\.weight should be \(16, 1024\), is missing"):
        load_model(with_card(file, {}, tensors))


def test_reading_a_card_loads_no_torch(file):
    code = (
        "import sys; from tiaft_plugin.network.card import read_card; from pathlib import Path; "
        "print(read_card(Path(sys.argv[1])).classes, 'torch' in sys.modules, 'timm' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "('TUM', 'STR', 'LYM') False False"


names = st.text(min_size=1, max_size=20).filter(lambda n: n.strip() and n.isprintable())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
objects = st.dictionaries(st.text(), json_values, max_size=3)
cards = st.builds(
    Card,
    backbone=names,
    tile_size=st.integers(1, 10_000),
    mpp=st.none() | st.floats(0.01, 100),
    classes=st.lists(names, min_size=2, max_size=5, unique=True),
    hidden=st.lists(st.integers(1, 5000), max_size=3),
    mean=st.tuples(*[st.floats(-1, 1)] * 3),
    std=st.tuples(*[st.floats(0.01, 1)] * 3),
    training=objects,
    data=objects,
    licence=st.text(),
)


@given(cards)
def test_cards_survive_their_json(card):
    assert card_from_json(card.to_json()) == card


@given(json_values | st.dictionaries(st.sampled_from([*Card.__dataclass_fields__]), json_values))
def test_wild_cards_are_read_or_refused_in_one_line(values):
    base = json.loads(Card("x", 224, 0.5, ("A", "B"), ()).to_json())
    if isinstance(values, dict):
        values = base | values
    try:
        card_from_json(json.dumps(values))
    except TiaftError as error:
        assert str(error).startswith("model card: ")
        assert len(str(error).splitlines()) == 1


# The ways in


def test_random_weights_stay(net):
    before = net.part_a.state_dict()["conv_stem.weight"].clone()
    assert init_part_a(net, "random") == "random weights"
    assert torch.equal(net.part_a.state_dict()["conv_stem.weight"], before)


def donor():
    torch.manual_seed(7)
    return timm.create_model(SMALL, pretrained=False, num_classes=5).eval()


def assert_filled(net, dtype=torch.float32):
    wanted = donor().state_dict()
    for name, value in net.part_a.state_dict().items():
        assert torch.equal(value, wanted[name].to(dtype).to(value.dtype)), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "nested", "module.", "no counters"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_state_dicts_come_in_as_they_are_found(net, tmp_path, wrap, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(donor().state_dict()), path)
    assert init_part_a(net, str(path)) == f"Part A from weights{suffix}, without its classifier"
    assert_filled(net)


def published(backbone: str, before: str, head: str) -> tuple[nn.Module, dict]:
    """torchvision's network without its head, and its weights as others publish them."""
    torch.manual_seed(7)
    own = getattr(torchvision.models, backbone)().eval()
    setattr(own, head, nn.Identity())
    cut = "features." if backbone == "densenet121" else ""
    return own, {before + k.removeprefix(cut): v for k, v in own.state_dict().items()}


@pytest.mark.parametrize(
    ("backbone", "before", "head", "besides", "told"),
    [
        # Ciga et al.'s SimCLR, with its projection; lunit's; KimiaNet.
        ("resnet18", "model.resnet.", "fc", "model.resnet.fc.1.weight", "model.resnet.fc"),
        ("resnet18", "", "fc", "", ""),
        ("densenet121", "module.model.0.", "classifier", "module.fc_4.weight", "fc_4"),
    ],
    ids=["simclr", "lunit", "kimianet"],
)
def test_histology_weights_come_in_as_their_authors_name_them(
    tmp_path, backbone, before, head, besides, told
):
    own, state = published(backbone, before, head)
    more = {besides: torch.zeros(2, 3)} if besides else {}
    torch.save({"state_dict": state | more}, tmp_path / "w.ckpt")
    net = network(backbone, classes=(), hidden=())
    source = init_part_a(net, str(tmp_path / "w.ckpt"))
    assert source == "Part A from w.ckpt" + f", without its {told}" * bool(told)
    tiles = some_tiles(2)
    torch.testing.assert_close(net.features(tiles), own(net.normalise(tiles)), rtol=0, atol=1e-5)


def test_weights_under_other_names_that_do_not_fit_are_refused(tmp_path):
    _, state = published("resnet18", "model.resnet.", "fc")
    path, net = tmp_path / "w.ckpt", network("resnet18", classes=(), hidden=())

    def refused(tensors, text):
        with pytest.raises(TiaftError, match=text):
            fill_part_a(net, tensors, path)

    lacking = {k: v for k, v in state.items() if not k.endswith("layer4.1.bn2.bias")}
    refused(lacking, r"w\.ckpt does not fit resnet18: layer4\.1\.bn2\.bias, .* is missing")
    odd = {**state, "model.resnet.layer4.2.conv1.weight": torch.zeros(1)}
    refused(odd, r"resnet18, which has no model\.resnet\.layer4\.2\.conv1\.weight")
    both = {f"{who}.{k}": v for k, v in state.items() for who in ("encoder_q", "encoder_k")}
    refused(both, r"several networks that fit \(encoder_q\.model\.resnet\., encoder_k\..*: save")


@pytest.mark.parametrize("name", ["weights.safetensors", "0a1b2c"])  # the latter as hubs cache them
def test_safetensors_come_in_in_half_precision_too(net, tmp_path, name):
    state = {k: v.half() if v.is_floating_point() else v for k, v in donor().state_dict().items()}
    save_file(state, tmp_path / name)
    init_part_a(net, str(tmp_path / name))
    assert_filled(net, torch.float16)
    assert net.part_a.state_dict()["conv_stem.weight"].dtype == torch.float32


def test_a_model_files_part_a_comes_in(file):
    other = network(classes=("A", "B"), hidden=())
    torch.nn.init.zeros_(other.part_a.conv_stem.weight)
    init_part_a(other, str(file))
    wanted = load_model(file).part_a.state_dict()
    assert all(torch.equal(wanted[k], v) for k, v in other.part_a.state_dict().items())


@pytest.mark.parametrize(
    "card",
    [{"backbone": "regnetx_002"}, {"backbone_args": {"pad_type": "same"}}],
)
def test_a_model_file_of_another_backbone_is_refused(file, card):
    with pytest.raises(TiaftError, match=f"does not fit: its backbone is {SMALL} with no arg"):
        init_part_a(network(**card), str(file))


def test_weights_of_another_backbone_are_refused(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(
        TiaftError, match=r"resnet\.pth does not fit mobil.* conv_stem.* is missing"
    ):
        init_part_a(network(), str(path))
    with pytest.raises(TiaftError, match=r"does not fit resnet10t: conv1\.0\.weight.* is missing"):
        init_part_a(network("resnet10t"), str(path))
    # All of a smaller network can stand in a bigger one's file.
    torch.save(timm.create_model("resnet34").state_dict(), path)
    with pytest.raises(TiaftError, match=r"does not fit resnet18, which has no layer1\.2\."):
        init_part_a(network("resnet18"), str(path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s.pop("bn1.weight"), r"bn1\.weight, of shape \(16,\), is missing"),
        (lambda s: s.update({"bn1.weight": torch.ones(3)}), r"bn1\.weight.* is of shape \(3,\)"),
        (lambda s: s["bn1.weight"].fill_(torch.inf), r"NaN or infinity \(bn1\.weight\)"),
        (lambda s: s.update({"bn1.weight": torch.ones(16).to_sparse()}), "is sparse, quantised"),
        (lambda s: s.update({"bn1.weight": 3}), "its entry 'bn1.weight' is no tensor"),
        (lambda s: s.clear(), "holds no weights by name"),
    ],
)
def test_incomplete_state_dicts_are_refused(net, tmp_path, change, text):
    path, state = tmp_path / "weights.pth", donor().state_dict()
    change(state)
    torch.save(state, path)
    with pytest.raises(TiaftError, match=text):
        init_part_a(net, str(path))


class Malice:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_nothing_runs(net, tmp_path, zipped):
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    content = {"state_dict": donor().state_dict(), "x": Malice(f"touch {trace}")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(TiaftError, match=r"weights\.pth is refused: .*Ask its author for a .safe"):
        init_part_a(net, str(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


def test_a_model_file_cannot_have_a_pickle_loaded(file, tmp_path):
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Malice(f"touch {trace}")))
    for name, value, text in (
        ("checkpoint_path", str(path), "checkpoint_path: refused"),
        ("pretrained_cfg_overlay", {"file": str(path)}, "pretrained_cfg_overlay is {'file'"),
    ):
        with pytest.raises(TiaftError, match=f"backbone_args {text}"):
            load_model(with_card(file, {"backbone_args": {name: value}}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("x.pth", b"", r"x\.pth is refused"),
        ("x.pth", b"text", r"x\.pth is refused"),
        ("x.safetensors", b"text", "is not a whole safetensors file"),
        ("x.h5", b"", r"is a Keras file: import it with `tiaft models convert`"),
        ("folder", None, "--init .*folder: neither imagenet, random nor a file"),
        ("imagnet", None, "neither imagenet, random nor a file"),
        ("y" * 5000, None, "neither imagenet, random nor a file"),
    ],
)
def test_files_without_weights_are_refused(net, tmp_path, name, content, text):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    with pytest.raises(TiaftError, match=text):
        init_part_a(net, str(path))


def test_imagenet_weights_out_of_reach_give_the_remedy(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no copy from an earlier download
    net = network("legacy_xception", tile_size=224, classes=(), hidden=())
    with pytest.raises(TiaftError) as caught:
        init_part_a(net, "imagenet")
    message = str(caught.value)
    assert message.startswith("timm's ImageNet weights of legacy_xception cannot be had (")
    assert "no network" in message
    assert "or pass --init FILE with weights from elsewhere, or --init random" in message


@pytest.mark.parametrize("tile_size", [224, 64])
def test_imagenet_weights_come_through_timm(monkeypatch, tile_size):
    created = {}

    def create_model(name, pretrained=False, **args):
        created.update(args, name=name, pretrained=pretrained)
        return original(name, pretrained=False, **args)

    net = network("vit_tiny_patch16_224", tile_size=tile_size)
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create_model)
    assert "vit_tiny_patch16_224.augreg" in init_part_a(net, "imagenet")
    assert (created["pretrained"], created["num_classes"]) == (True, 0)
    assert created["img_size"] == tile_size  # timm then fits the position embedding


def test_real_weights_come_in(data):
    net = network(
        "mobilenetv2_100", tile_size=224, classes=(), hidden=(), backbone_args={"pad_type": "same"}
    )
    path = data / "weights/mobilenetv2_100.imagenet.safetensors"
    found = init_part_a(net, str(path))
    assert found == "Part A from mobilenetv2_100.imagenet.safetensors, without its classifier"
    own = timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same").eval()
    own.load_state_dict(load_file(path))
    tiles = some_tiles(1, 224)
    wanted = own.forward_head(
        own.forward_features((torch.tensor(tiles).permute(0, 3, 1, 2) - 127.5) / 127.5),
        pre_logits=True,
    )
    torch.testing.assert_close(net.features(tiles), wanted)
