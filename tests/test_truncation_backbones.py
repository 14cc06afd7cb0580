"""Truncated backbones and the CBR family: what is left of a network, and that it works as one."""

import re

import numpy as np
import processes
import pytest
import torch
from conftest import tiaft
from safetensors.torch import load_file
from tiatoolbox.models import DeepFeatureExtractor
from torch import nn

from tiaft_extensions.truncation.backbones.cbr import FAMILY
from tiaft_extensions.truncation.backbones.cuts import find_cut, list_cuts
from tiaft_extensions.truncation.backbones.macs import macs_of, parameters_of
from tiaft_extensions.truncation.backbones.meanvar import draw_like
from tiaft_plugin import TiaftError
from tiaft_plugin.network import create_network, load_model, save_model
from tiaft_plugin.network.backbone import create_backbone
from tiaft_plugin.zoo import folder

WEIGHTS = "weights/mobilenetv2_100.imagenet.safetensors"
MOBILENET = {"backbone_args": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3}
SMALL = "mobilenetv3_small_050"


def tiles(count=2, size=64):
    shape = (count, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def twins(backbone, cut, size):
    """Return a whole backbone and its truncated self, with the same random weights."""
    torch.manual_seed(0)
    whole = create_backbone(backbone, size).eval()
    cut_off = create_backbone(f"{backbone}:{cut}", size).eval()
    assert not cut_off.load_state_dict(whole.state_dict(), strict=False).missing_keys
    return whole, cut_off


# The papers' networks: widths and trunk parameters (in millions, to three places)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (
            "resnet50",
            {
                "T1": (256, 0.225),
                "T2": (512, 1.445),
                "layer3": (1024, 8.543),
                "layer4": (2048, 23.508),
            },
        ),
        (
            "resnet18",
            {
                "layer1": (64, 0.158),
                "layer2": (128, 0.683),
                "layer3": (256, 2.783),
                "layer4": (512, 11.177),
            },
        ),
        (
            "densenet121",
            {
                "T1": (128, 0.378),
                "T2": (256, 1.430),
                "T3": (512, 4.794),
                "T4": (1024, 6.954),
                "denseblock1": (256, 0.345),
                "denseblock2": (512, 1.298),
                "denseblock3": (1024, 4.267),
                "denseblock4": (1024, 6.952),
            },
        ),
    ],
)
def test_widths_and_parameters_are_those_of_the_papers(backbone, expected):
    cuts = list_cuts(backbone, layers=False)
    found = {
        name: (cut.width, round(cut.parameters / 1e6, 3))
        for cut in cuts
        for name in (cut.name, cut.stage)
    }
    assert {name: found[name] for name in expected} == expected
    assert [cut.parameters for cut in cuts] == sorted(cut.parameters for cut in cuts)


def test_layers_of_resnet50_are_the_search_s_sixteen():
    """Peng et al. find layer3.3 the best of 16: 6.31 M parameters."""
    cuts = list_cuts("resnet50")
    assert len(cuts) == 16
    best = next(cut for cut in cuts if cut.name == "layer3.3")
    assert (best.layer, best.stage, best.width) == (True, "", 1024)
    assert round(best.parameters / 1e6, 2) == 6.31
    assert [cut.name for cut in cuts if not cut.layer] == ["layer1", "layer2", "layer3", "layer4"]


def test_what_the_list_says_is_what_is_built():
    for cut in list_cuts(SMALL, 64, layers=False):
        built = create_backbone(f"{SMALL}:{cut.name}", 64).eval()
        measured = (built.num_features, parameters_of(built), macs_of(built, 64))
        assert measured == (cut.width, cut.parameters, cut.macs), cut.name


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cbr_large_t", 8.54), ("cbr_large_w", 8.44), ("cbr_small", 2.11), ("cbr_tiny", 4.31)],
)
def test_the_cbr_family(name, millions):
    assert round(parameters_of(create_backbone(name, 224)) / 1e6, 2) == millions


def test_widths_of_the_cbr_family_can_be_set():
    """The paper's table may mean 32-64-128-256 by CBR-Tiny, which has 1.08 M parameters."""
    for widths in ("32,64,128,256", [32, 64, 128, 256]):
        built = create_backbone("cbr_tiny", 224, {"widths": widths})
        assert round(parameters_of(built) / 1e6, 2) == 1.08
    assert create_backbone("cbr_tiny:T2", 64, {"widths": [4, 5, 6]}).num_features == 5


# What is computed


@pytest.mark.parametrize(
    ("backbone", "cut", "size"),
    [
        (SMALL, "blocks.2", 64),
        ("mobilenetv2_100", "blocks.3.1", 64),
        ("resnet10t", "layer2", 64),
        ("resnet18", "layer3.0", 64),
        ("legacy_xception", "block3", 64),
        ("densenet121", "denseblock1", 64),
        ("densenet121", "T2", 64),
        ("convnext_atto", "stages.1", 64),
        ("regnetx_002", "s2", 64),
        ("inception_v3", "Mixed_5b", 75),
        ("resnetv2_50", "stages.1", 64),
        ("cbr_tiny", "blocks.2", 32),
    ],
)
def test_features_are_the_mean_of_the_map_at_the_cut(backbone, cut, size):
    whole, cut_off = twins(backbone, cut, size)
    maps = []
    path = {"denseblock1": "features.denseblock1", "T2": "features.transition2"}.get(cut, cut)
    whole.get_submodule(path).register_forward_hook(lambda *given: maps.append(given[2]))
    pixels = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        whole(pixels)
        features = cut_off(pixels)
    assert features.shape == (2, cut_off.num_features)
    torch.testing.assert_close(features, maps[0].mean((2, 3)))


def test_a_cut_inside_a_dense_block_gives_all_that_its_layers_gave():
    whole, cut_off = twins("densenet121", "denseblock2.denselayer3", 64)
    given = []
    next_layer = whole.features.denseblock2.denselayer4
    next_layer.register_forward_pre_hook(lambda _, inputs: given.append(torch.cat(inputs[0], 1)))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        whole(pixels)
        torch.testing.assert_close(cut_off(pixels), given[0].mean((2, 3)))
    listed = next(c for c in list_cuts("densenet121", 64) if c.name == "denseblock2.denselayer3")
    assert (listed.width, listed.parameters) == (cut_off.num_features, parameters_of(cut_off))


def test_tokens_are_pooled_as_timm_pools_them():
    size = 224
    whole, cut_off = twins("vit_tiny_patch16_224", "blocks.1", size)
    tokens = []
    whole.blocks[1].register_forward_hook(lambda *given: tokens.append(given[2]))
    pixels = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        whole(pixels)
        torch.testing.assert_close(cut_off(pixels), tokens[0][:, 0])


def test_a_place_that_others_go_round_is_no_cut():
    """HRNet's branches and NASNet's cells go on from several maps."""
    names = {cut.name for cut in list_cuts("hrnet_w18_small", 64)}
    assert not names & {"layer1.0", "layer1", "stage2", "stage3", "stage4"}
    assert all(find_cut("hrnet_w18_small", name, 64) for name in names)
    with pytest.raises(TiaftError, match="has no cut 'layer1.0.conv1'"):
        find_cut("resnet18", "layer1.0.conv1", 64)


@pytest.mark.parametrize("backbone", ["resnet18", "cbr_tiny"])
def test_the_whole_is_a_cut_of_every_network(backbone):
    assert find_cut(backbone, "whole", 64).left_out == ()


def test_gradients_turned_off_do_not_hide_the_cuts():
    for off in (torch.no_grad, torch.inference_mode):
        find_cut.__globals__["_find"].cache_clear()
        with off():
            assert create_backbone("resnet18:layer2", 32).num_features == 128


def test_the_same_seed_gives_the_same_network_whether_the_cut_is_known_or_not():
    backbones = []
    for _ in range(2):
        torch.manual_seed(3)
        backbones.append(create_backbone("regnetx_002:s2", 64).state_dict())
    assert all(torch.equal(value, backbones[1][name]) for name, value in backbones[0].items())


# Weights


def test_pretrained_weights_load_and_what_is_cut_off_stays_in_the_file(data):
    net = create_network("mobilenetv2_100:blocks.3", init=str(data / WEIGHTS), **MOBILENET)
    file = load_file(data / WEIGHTS)
    own = net.part_a.state_dict()
    assert net.feature_width == 64 and len(own) < len(file)
    assert all(torch.equal(file[name], own[name]) for name in own if name in file)
    with pytest.raises(TiaftError, match=r"does not fit resnet18:layer1: conv1.weight"):
        create_network("resnet18:layer1", init=str(data / WEIGHTS))


def test_a_model_file_begins_a_shorter_one_and_rebuilds_itself(tmp_path):
    whole = create_network(SMALL, "abc", init="random", tile_size=64)
    path = save_model(whole, tmp_path / "whole.safetensors")
    cut_off = create_network(f"{SMALL}:blocks.2", "abc", init=str(path), tile_size=64)
    again = load_model(save_model(cut_off, tmp_path / "cut.safetensors"))
    assert again.card.backbone == f"{SMALL}:blocks.2"
    torch.testing.assert_close(again(tiles()), cut_off(tiles()))


def test_without_the_plugin_its_model_files_say_so(tmp_path):
    net = create_network(f"{SMALL}:blocks.2", init="random", tile_size=64)
    path = save_model(net, tmp_path / "cut.safetensors")
    code = f"from tiaft_plugin.network import load_model; load_model({str(path)!r})"
    done = processes.run(code, TIAFT_DISABLE_PLUGINS="truncation")
    said = f"cut.safetensors: timm has no backbone '{SMALL}:blocks.2', nor has a plug-in: `tiaft"
    assert done.returncode == 1 and said in done.stderr


def test_mean_var_weights_have_the_scale_and_nothing_else():
    net = create_backbone("resnet18:layer2", 64)
    before = {name: value.clone() for name, value in net.named_parameters()}
    net.bn1.running_mean += 1
    draw_like(net, 5)
    for name, value in net.named_parameters():
        if value.numel() > 10_000:
            old = before[name]
            assert abs(value.mean() - old.mean()) < 5 * old.std() / value.numel() ** 0.5
            assert value.std().item() == pytest.approx(old.std().item(), rel=0.05)
            assert abs(torch.corrcoef(torch.stack([value.flatten(), old.flatten()]))[0, 1]) < 0.05
    assert not net.bn1.running_mean.any() and (net.bn1.running_var == 1).all()
    constant = before["bn1.weight"]  # all ones: no variance, so nothing to draw
    assert torch.equal(net.bn1.weight, constant)
    drawn = net.conv1.weight.clone()
    net.load_state_dict({**net.state_dict(), **before})
    draw_like(net, 5)
    assert torch.equal(net.conv1.weight, drawn)


# As a model like any other


def test_stock_tiatoolbox_extracts_with_a_registered_truncated_network(data, tmp_path):
    net = create_network(
        "mobilenetv2_100:blocks.3", init=str(data / WEIGHTS), tile_size=64, mpp=0.5, **MOBILENET
    )
    folder.add_model("short", save_model(net, tmp_path / "short.safetensors"))
    extractor = DeepFeatureExtractor("short", batch_size=2, verbose=False)
    found = extractor.run(tiles(5), patch_mode=True)["features"]
    with torch.inference_mode():
        np.testing.assert_allclose(found, net.features(tiles(5)), rtol=1e-4, atol=1e-5)


def test_frozen_and_trained_by_the_two_stages(tmp_path):
    from PIL import Image

    for number, pixels in enumerate(tiles(8, 32)):
        place = tmp_path / "tiles" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    options = ["--init", "random", "--mpp", 0.5, "--val-share", 0, "--epochs", "1,1", "--hidden", 8]
    options += ["--backbone", SMALL, "--truncate", "blocks.1", "--batch-size", 4]
    done = tiaft("finetune", tmp_path / "tiles", "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    net = load_model(tmp_path / "run" / "model.safetensors")
    assert net.card.backbone == f"{SMALL}:blocks.1"
    assert net.card.classes == ("a", "b")
    assert net.part_b.hidden.fc1.weight.shape[1] == net.part_a.num_features


# The command line


def test_cuts_are_listed():
    done = tiaft("truncate", "cuts", "resnet18")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["CUT", "OR", "FEATURES", "M", "PARAMETERS", "GMACS"]
    assert lines[3] == ["layer3", "T3", "256", "2.783", "1.403"]
    with_layers = tiaft("truncate", "cuts", "resnet18", "--layers").stdout.splitlines()
    assert len(lines) == 5 and len(with_layers) == 9


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--backbone", "resnet18", "--truncate", "layer9"), r"resnet18 has no cut 'layer9'; .*"),
        (("--backbone", "resnet18:", "--init", "random"), r"layer3 \(256\), layer4 \(512\)"),
        (("--truncate", "layer1"), "--truncate CUT needs --backbone NAME"),
        (("--backbone", "resnet19:layer1"), "timm has no backbone 'resnet19'.*did you mean"),
        (("--backbone", "cbr_huge"), f"no cbr_huge in the CBR family: {', '.join(FAMILY)} are"),
        (("--backbone", "cbr_tiny"), "no ImageNet weights of cbr_tiny: pass --init FILE or random"),
        (("--backbone", "cbr_tiny", "--backbone-arg", "kernel=4"), "kernel is 4, not an odd numb"),
        (("--backbone", "cbr_tiny", "--backbone-arg", "widths=a"), "such as 32,64,128,256"),
        (("--backbone", "cbr_tiny", "--backbone-arg", "depth=4"), "widths and kernel may be set"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(arguments, text, tmp_path):
    done = tiaft("models", "create", tmp_path / "m.safetensors", "--tile-size", 64, *arguments)
    assert done.returncode == 2
    assert re.search(text, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 or "Usage" in done.stderr
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_network_without_blocks_is_refused_by_name():
    done = tiaft("truncate", "cuts", "nothing_at_all")
    assert done.returncode == 2 and "timm has no backbone 'nothing_at_all'" in done.stderr


def test_a_model_that_tiatoolbox_cannot_build_is_not_exported_as_weights(tmp_path):
    net = create_network(f"{SMALL}:blocks.1", init="random", tile_size=64, mpp=0.5)
    path = save_model(net, tmp_path / "m.safetensors")
    done = tiaft("models", "export", path, tmp_path / "m.pth", "--to", "pth")
    assert done.returncode == 1 and "--to torchscript" in done.stderr
    assert not (tmp_path / "m.pth").exists()
    done = tiaft("models", "export", path, tmp_path / "m.pt", "--to", "torchscript")
    assert done.returncode == 0, done.stderr


def test_heads_that_are_modules_keep_their_pooling():
    cut_off = create_backbone("convnext_atto:stages.0", 64)
    assert any(isinstance(each, nn.Identity) for each in cut_off.head.children())
    assert cut_off(torch.zeros(1, 3, 64, 64)).shape == (1, cut_off.num_features)
