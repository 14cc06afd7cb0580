"""A model on a device gives what it gives by itself, and faster."""

import copy
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiatoolbox.models.architecture import idars
from tiatoolbox.models.architecture.vanilla import CNNBackbone, CNNModel, TimmBackbone
from tiatoolbox.models.dataset.classification import _TorchPreprocCaller, predefined_preproc_func
from tiatoolbox.models.models_abc import ModelABC
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import nn
from torchvision import transforms

from tiaft_plugin.engine import compute as computing
from tiaft_plugin.engine.compute import Compute, relative_error
from tiaft_plugin.engine.folding import fold_batchnorm
from tiaft_plugin.engine.precision import earned, least_cosine
from tiaft_plugin.engine.preprocessing import on_device
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.network import create_network
from tiaft_plugin.network.export import check_tiles
from tiaft_plugin.zoo.models import TileClassifier, TileFeatures
from tiaft_plugin.zoo.names import NamedModel

SIZE = 32
SHAPE = {"tile_shape": (SIZE, SIZE), "batch_size": 4}


def unsettled(model):
    """Give BatchNorm statistics that matter."""
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.3)
    return model.eval()


class Plain(ModelABC):
    """A TIAToolbox model, as anybody writes one."""

    def __init__(self, body=None):
        super().__init__()
        self.body = body or nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        unsettled(self)

    def forward(self, tiles):
        return self.body(tiles)

    @staticmethod
    def infer_batch(model, batch_data, *, device):
        tiles = torch.as_tensor(batch_data).to(device).float().permute(0, 3, 1, 2) / 255
        with torch.inference_mode():
            return model(tiles).cpu().numpy()


@pytest.fixture
def tiles():
    return np.concatenate([check_tiles(SIZE), check_tiles(SIZE)[::-1, ::-1]])


def tile_model(kind=TileFeatures, backbone="test_resnet", classes=("a", "b", "c")):
    model = kind(NamedModel("x", "x", "features", SIZE, 0.5, classes))
    model.net = create_network(backbone, classes, init="random", tile_size=SIZE, hidden=(8,))
    unsettled(model)
    return model


def by_itself(model, tiles):
    output = model.infer_batch(model, torch.as_tensor(tiles), device="cpu")
    return np.asarray(output[0] if isinstance(output, list) else output)


@pytest.mark.parametrize("kind", [TileFeatures, TileClassifier])
def test_our_models_give_what_they_give_with_batchnorm_folded(tiles, kind):
    model = tile_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compute = Compute(model, "cpu", **SHAPE)
    assert compute.takes_uint8 and compute.channels_last
    assert compute.folded == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) > 4
    assert relative_error(compute(tiles), by_itself(model, tiles)) < 1e-6
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("model", [CNNBackbone("resnet18"), CNNModel("mobilenet_v3_small", 3)])
def test_tiatoolbox_models_give_what_they_give(tiles, model):
    unsettled(model)
    if isinstance(model, CNNModel):
        model.preproc_func = predefined_preproc_func("kather100k")
    compute = Compute(model, "cpu", **SHAPE)
    assert compute.takes_uint8 and compute.folded > 15
    prepared = np.stack([np.asarray(model.preproc_func(tile)) for tile in tiles])
    assert relative_error(compute(tiles), by_itself(model, prepared)) < 1e-5


def test_a_timm_backbone_of_tiatoolbox_gives_what_it_gives(tiles):
    model = unsettled(TimmBackbone("test_efficientnet", pretrained=False))
    compute = Compute(model, "cpu", **SHAPE)
    assert compute.folded > 5
    assert relative_error(compute(tiles), by_itself(model, tiles)) < 1e-5


def test_a_model_with_its_own_infer_batch_and_preprocessing_is_served(tiles):
    model = Plain()
    model.preproc_func = lambda image: image[:, ::-1] // 2
    compute = Compute(model, "cpu", **SHAPE)
    assert not compute.takes_uint8 and compute.folded == 1
    prepared = np.stack([model.preproc_func(tile) for tile in tiles])
    assert relative_error(compute(prepared), by_itself(model, prepared)) < 1e-6
    assert compute.at("bfloat16")(prepared).dtype == np.float32


def test_a_model_of_one_list_and_a_bare_module_are_served(tiles):
    class Listed(Plain):
        @staticmethod
        def infer_batch(model, batch_data, *, device):
            return [Plain.infer_batch(model, batch_data, device=device)]

    class Bare(nn.Module):
        def forward(self, tiles):
            return tiles.float().mean(dim=(1, 2))

    assert relative_error(Compute(Listed(), "cpu", **SHAPE)(tiles), by_itself(Listed(), tiles)) < 1
    means = tiles.astype(np.float64).mean(axis=(1, 2))
    assert relative_error(Compute(Bare(), "cpu", **SHAPE)(tiles), means) < 1e-6


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tile_gives_the_same_bits_in_any_company(tiles, precision):
    compute = Compute(tile_model(), "cpu", precision, **SHAPE)
    wanted = compute(tiles)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.integers(0, len(tiles) - 1), min_size=1, max_size=9))
    def check(rows):
        assert np.array_equal(compute(tiles[rows]), wanted[rows])

    check()


def test_batches_come_in_order_where_a_gpu_runs_ahead(tiles):
    compute = Compute(tile_model(), "cpu", **SHAPE)
    wanted = [compute(tiles[:4]), compute(tiles[4:6]), compute(tiles[6:])]
    for ahead in (False, True):
        compute._runs_ahead = ahead
        found = list(compute.each(iter([tiles[:4], tiles[4:6], tiles[6:]])))
        assert all(map(np.array_equal, found, wanted)) and len(found) == 3
    assert list(compute.each([])) == []


def test_an_output_that_is_no_row_a_tile_is_refused(tiles):
    with pytest.raises(TiaftError, match="an output of shape .8, 8, 30, 30. for 8 tiles"):
        Compute(Plain(nn.Conv2d(3, 8, 3)), "cpu", **SHAPE)(tiles)
    with pytest.raises(TiaftError, match="there is no precision half: there is float32, bfloat16"):
        Compute(Plain(), "cpu", "half", **SHAPE)


def test_a_model_that_cannot_be_copied_is_used_as_it_comes(tiles, caplog):
    model = Plain()
    model.log = (line for line in "ab")  # no generator can be copied
    compute = Compute(model, "cpu", **SHAPE)
    assert "cannot be copied" in caplog.text and compute.folded == 0
    assert np.allclose(compute(tiles), by_itself(model, tiles), rtol=1e-5)


class Reads(nn.Module):
    """Looks at a convolution's weights, which folding changes; nothing of that is to be seen."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)).mean(dim=(2, 3)) * self.conv.weight.norm()


def test_folding_that_changes_outputs_is_not_kept(tiles):
    model = Plain(Reads())
    assert fold_batchnorm(copy.deepcopy(model), lambda m: m(torch.rand(2, 3, 8, 8))) == 1
    compute = Compute(model, "cpu", **SHAPE)
    assert compute.folded == 0 and compute.channels_last
    assert relative_error(compute(tiles), by_itself(model, tiles)) < 1e-6


class Pairs(nn.Module):
    """A convolution and BatchNorm, and a way to use them."""

    def __init__(self, way, conv=None, norm=None):
        super().__init__()
        self.way = way
        self.conv, self.bn = conv or nn.Conv2d(3, 3, 3, padding=1), norm or nn.BatchNorm2d(3)

    def forward(self, x):
        return self.way(self, x)


def _skip(m, x):
    y = m.conv(x)
    return m.bn(y) + y


def _given_away(m, x):
    y = m.conv(x)
    return m.bn(y), y


WAYS = {
    "in turn": (lambda m, x: m.bn(m.conv(x)), 1),
    "in turn, and after": (lambda m, x: m.bn(m.conv(x)).relu() + x, 1),
    "skipped": (_skip, 0),
    "given away": (_given_away, 0),
    "between": (lambda m, x: m.bn(m.conv(x).relu()), 0),
    "other way round": (lambda m, x: m.conv(m.bn(x)), 0),
    "twice": (lambda m, x: m.bn(m.conv(m.bn(m.conv(x)))), 0),
    "convolution twice": (lambda m, x: m.bn(m.conv(m.conv(x))), 0),
}


def outputs(model, x):
    with torch.no_grad():
        given = model(x)
    return torch.cat(given) if isinstance(given, tuple) else given


@pytest.mark.parametrize("name", WAYS)
def test_only_a_batchnorm_that_alone_takes_a_convolution_is_folded(name):
    way, expected = WAYS[name]
    model, x = unsettled(Pairs(way)), torch.rand(2, 3, 8, 8)
    wanted = outputs(model, x)
    assert fold_batchnorm(model, lambda m: outputs_of_any(m, x)) == expected
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.allclose(outputs(model, x), wanted, atol=1e-6)


def outputs_of_any(model, x):
    with torch.no_grad():
        return model(x)


def test_what_makes_its_weights_anew_is_not_folded_and_activations_stay():
    way, x = WAYS["in turn"][0], torch.rand(2, 3, 8, 8)
    activated = unsettled(Pairs(way, norm=BatchNormAct2d(3)))
    no_statistics = Pairs(way, norm=nn.BatchNorm2d(3, track_running_stats=False)).eval()
    standardised = unsettled(Pairs(way, conv=ScaledStdConv2d(3, 3, 3, padding=1)))
    spectral = unsettled(Pairs(way, conv=nn.utils.spectral_norm(nn.Conv2d(3, 3, 3, padding=1))))
    for model, expected in [(activated, 1), (no_statistics, 0), (standardised, 0), (spectral, 0)]:
        wanted = outputs(model, x)
        assert fold_batchnorm(model, lambda m: outputs_of_any(m, x)) == expected
        assert torch.allclose(outputs(model, x), wanted, atol=1e-6)
    assert (outputs(activated, x) >= 0).all()


def to_tensor(*more):
    return _TorchPreprocCaller([transforms.ToTensor(), *more])


@pytest.mark.parametrize(
    "preprocess",
    [
        ModelABC.preproc,
        predefined_preproc_func("kather100k"),
        predefined_preproc_func("pcam"),
        idars.IDaRS.preproc,
        to_tensor(transforms.Normalize((0.7, 0.5, 0.7), (0.2, 0.3, 0.1))),
    ],
)
def test_known_preprocessing_is_the_same_to_the_bit(preprocess):
    tile = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tile[..., 1] = tile[::-1, :, 1]
    there = on_device(preprocess)
    assert np.array_equal(there(torch.from_numpy(tile)[None])[0], np.asarray(preprocess(tile)))


def test_preprocessing_that_is_not_known_stays_where_tiles_are_read():
    class Own(_TorchPreprocCaller):
        pass

    assert on_device(lambda tile: tile) is None
    assert on_device(to_tensor(transforms.Resize(8))) is None
    assert on_device(to_tensor(transforms.RandomHorizontalFlip())) is None
    assert on_device(Own([transforms.ToTensor()])) is None


def out_of_memory(above, error):
    """Return a forward function that has no memory for more than so many tiles."""
    tried = []

    def forward(model, tiles):
        tried.append(len(tiles))
        if len(tiles) > above:
            raise error
        return model(tiles)

    return forward, tried


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_what_is_done_at_once(tiles, caplog, error):
    compute = Compute(tile_model(), "cpu", **SHAPE)
    wanted = compute(tiles)
    compute._forward, tried = out_of_memory(1, error)
    with caplog.at_level(logging.WARNING):
        assert relative_error(compute(tiles[:5]), wanted[:5]) < 1e-6
    assert tried == [4, 2, 1, 1, 1, 1, 1] and compute.facts["tiles_at_once"] == 1
    assert "out of memory: 2 tiles at once" in caplog.text
    compute._forward, _ = out_of_memory(0, error)
    with pytest.raises(TiaftError, match="not suffice for one tile at a time"):
        compute(tiles)


def test_other_errors_are_not_taken_for_out_of_memory(tiles):
    compute = Compute(tile_model(), "cpu", **SHAPE)
    compute._forward, tried = out_of_memory(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        compute(tiles)
    assert tried == [4]


class Cancels(nn.Module):
    """Small differences of large numbers, of which bfloat16 keeps none."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 8)
        self.fc.bias.data.fill_(1e4)

    def forward(self, x):
        return self.fc(x.mean(dim=(2, 3))) - 1e4


def test_precision_is_earned(tiles):
    compute = Compute(tile_model(), "cpu", **SHAPE)
    found = earned(compute, tiles, ["bfloat16", "float32"])
    assert found.precision == "bfloat16" and found.tiles == len(tiles)
    error = relative_error(compute.at("bfloat16")(tiles), compute(tiles))
    assert found.relative_error == pytest.approx(error)
    assert 0 < found.relative_error < 0.01 and 0.9995 < found.cosine < 1
    assert found.tiles_per_second > 0 and "tiles_per_second" not in found.facts
    assert found.why.startswith("bfloat16: cosine 0.9999")


def test_precision_that_is_not_earned_is_refused(tiles):
    found = earned(Compute(Plain(Cancels()), "cpu", **SHAPE), tiles, ["bfloat16", "float32"])
    assert (found.precision, found.cosine, found.relative_error) == ("float32", 1.0, 0.0)
    assert found.why.startswith("float32; bfloat16 is too far: cosine")


def test_a_model_that_fails_in_bfloat16_is_run_in_float32(tiles):
    class Fails(nn.Module):
        def forward(self, x):
            if torch.is_autocast_enabled("cpu"):
                raise RuntimeError('"cdist" not implemented for BFloat16')
            return x.mean(dim=(2, 3))

    found = earned(Compute(Plain(Fails()), "cpu", **SHAPE), tiles, ["bfloat16"])
    assert found.why == 'float32; bfloat16 fails: "cdist" not implemented for BFloat16'


def test_bfloat16_is_not_tried_without_instructions_for_it(tiles, monkeypatch):
    monkeypatch.setattr("tiaft_plugin.engine.precision.has_bfloat16", lambda device: False)
    found = earned(Compute(tile_model(), "cpu", **SHAPE), tiles)
    assert (found.precision, found.why) == ("float32", "float32: nothing faster was tried")


def test_cosine_knows_rows_of_zeros_and_what_is_not_finite():
    rows = np.array([[0, 0], [3, 4]], dtype=np.float32)
    assert least_cosine(rows, rows) == 1
    assert least_cosine(np.array([[0, 1], [3, 4]]), rows) == 0
    assert least_cosine(np.array([[0, 0], [4, -3]]), rows) == 0
    assert least_cosine(np.array([[0, np.nan], [3, 4]]), rows) == -1
    assert relative_error(np.array([[0, np.inf], [3, 4]]), rows) == np.inf
    assert relative_error(rows[:1], rows) == np.inf


def test_a_model_that_does_not_compile_runs_without(tiles, monkeypatch, caplog):
    def refuse(model, **options):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(computing.torch, "compile", refuse)
    compute = Compute(tile_model(), "cpu", compiled=True, **SHAPE)
    assert not compute.compiled and "not compiled: no C++ compiler" in caplog.text
    assert np.array_equal(compute(tiles), compute.at("float32")(tiles))


def test_a_compiled_model_with_other_outputs_is_not_used(tiles, monkeypatch, caplog):
    def wrong(model, **options):
        return lambda tiles: model(tiles) * 1.1

    monkeypatch.setattr(computing.torch, "compile", wrong)
    compute = Compute(tile_model(), "cpu", compiled=True, **SHAPE)
    assert not compute.facts["compiled"] and "not compiled: outputs differ" in caplog.text
    assert relative_error(compute(tiles), by_itself(tile_model(), tiles)) < 1e-6


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = Plain().body

    def forward(self, tiles):
        return self.body(tiles.permute(0, 3, 1, 2) / 255)


@pytest.mark.slow
def test_a_compiled_model_gives_what_it_gives(tiles):
    model = TileFeatures(NamedModel("x", "x", "features", SIZE, 0.5, ()))
    model.net = Small()
    compute = Compute(model, "cpu", compiled=True, **SHAPE)
    assert compute.compiled and compute.compile_seconds > 0
    assert relative_error(compute(tiles[:6]), by_itself(model, tiles[:6])) < 1e-5
    assert not compute.at("float32").compiled


@pytest.mark.slow
def test_real_mobilenet_is_folded_and_refused_bfloat16(data):
    net = create_network(
        "mobilenetv2_100",
        init=str(data / "weights/mobilenetv2_100.imagenet.safetensors"),
        backbone_args={"pad_type": "same"},
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    from tiaft_plugin.tiles.images import read_image

    paths = sorted((data / "nct_crc_he").rglob("*.webp"))[::4][:16]
    tiles = np.stack([read_image(path) for path in paths])
    model = TileFeatures(NamedModel("m", "m", "features", 224, 0.5, ()))
    model.net = net
    compute = Compute(model, "cpu", batch_size=8, tile_shape=(224, 224))
    assert compute.folded == 52
    assert relative_error(compute(tiles), by_itself(model, tiles)) < 1e-5
    found = earned(compute, tiles, ["bfloat16"])
    assert found.precision == "float32" and "bfloat16 is too far" in found.why
