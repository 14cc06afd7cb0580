"""Precision and memory of training: what is picked and recorded, and checkpointing's exactness."""

import copy
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import processes
import pytest
import torch
from conftest import TINY
from torch import nn

from tiaft_plugin import TiaftError
from tiaft_plugin.finetune import memory
from tiaft_plugin.finetune.memory import (
    Need,
    blocks,
    checkpoint_activations,
    decide,
    free_memory,
    measure_need,
)
from tiaft_plugin.network import create_network, precision
from tiaft_plugin.network.backbone import create_backbone
from tiaft_plugin.network.precision import (
    environment,
    has_bfloat16,
    memory_format,
    pick_precision,
    slow_bfloat16,
)

CPU = torch.device("cpu")
GIB = 2**30
SMALL = {  # backbones with BatchNorm, blocks in blocks, dropped paths, LayerNorm
    "test_resnet": {"drop_path_rate": 0.5},
    "test_efficientnet": {"drop_path_rate": 0.5, "drop_rate": 0.5},
    "test_vit": {"img_size": 48, "drop_path_rate": 0.5, "proj_drop_rate": 0.3},
    "test_convnext": {},
}


def train_twice(
    backbone: nn.Module, bfloat16: bool, checkpointed: bool, size: int = 48
) -> dict[str, torch.Tensor]:
    """Return gradients and buffers after two steps on the same pixels, from the same seed."""
    trained = copy.deepcopy(backbone).train()
    torch.manual_seed(5)
    layout = memory_format(trained)
    trained.to(memory_format=layout)
    pixels = torch.randn(4, 3, size, size).contiguous(memory_format=layout)
    with checkpoint_activations(trained) if checkpointed else nullcontext():
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = trained(pixels).float().square().mean()
            loss.backward()
    gradients = {f"grad {n}": p.grad for n, p in trained.named_parameters() if p.grad is not None}
    drawn = torch.rand(1)  # random numbers go on as if nothing had been computed twice
    return {**gradients, **dict(trained.named_buffers()), "loss": loss.detach(), "drawn": drawn}


def unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", SMALL)
def test_checkpointed_training_is_plain_training_to_the_bit(name, bfloat16):
    torch.manual_seed(0)
    backbone = create_backbone(name, 48, SMALL[name])
    plain = train_twice(backbone, bfloat16, checkpointed=False)
    assert not unequal(plain, train_twice(backbone, bfloat16, checkpointed=True))
    assert not unequal(plain, train_twice(backbone, bfloat16, checkpointed=False))
    counted = [v for n, v in plain.items() if n.endswith("num_batches_tracked")]
    assert all(value == 2 for value in counted)


class ListBlock(nn.Module):
    """A block that changes the list that it is given, as HRNet's do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    def forward(self, maps: list) -> list:
        maps[0] = self.layer(maps[0])
        maps[1] = maps[1] * maps[0]
        return maps


class ListBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(ListBlock(), ListBlock())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.stages([pixels, pixels.tanh()])[1].mean((2, 3))


def test_blocks_that_change_what_they_are_given():
    backbone = ListBackbone()
    plain = train_twice(backbone, False, checkpointed=False)
    assert not unequal(plain, train_twice(backbone, False, checkpointed=True))


def test_statistics_of_other_layers_count_once():
    from timm.layers.evo_norm import EvoNorm2dB0

    backbone = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), EvoNorm2dB0(8)), nn.Flatten())
    plain = train_twice(backbone, False, checkpointed=False, size=8)
    assert "0.1.running_var" in plain
    assert not unequal(plain, train_twice(backbone, False, checkpointed=True, size=8))


def test_frozen_batchnorm_stays_as_it_is():
    backbone = create_backbone(TINY, 64)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    with checkpoint_activations(backbone):
        backbone.train()
        for norm in norms:
            norm.eval()
        backbone(torch.randn(2, 3, 64, 64)).sum().backward()
    for norm, state in zip(norms, before, strict=True):
        assert not unequal(norm.state_dict(), state)


def test_the_backbone_is_left_as_it_was():
    backbone = create_backbone(TINY, 64)
    names = list(backbone.state_dict())
    with checkpoint_activations(backbone), checkpoint_activations(backbone):
        assert list(backbone.state_dict()) == names
        assert all("forward" in vars(block) for block in blocks(backbone))
    assert not any("forward" in vars(module) for module in backbone.modules())
    with pytest.raises(RuntimeError, match="stop"), checkpoint_activations(backbone):
        raise RuntimeError("stop")
    assert not any("forward" in vars(module) for module in backbone.modules())


def test_a_copy_made_meanwhile_computes_with_its_own_weights():
    backbone = create_backbone(TINY, 64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = backbone(pixels)
    with checkpoint_activations(backbone):
        copied = copy.deepcopy(backbone)
        with torch.no_grad():
            for weight in backbone.parameters():
                weight.zero_()
        assert torch.equal(copied(pixels), expected)


@pytest.mark.parametrize(
    ("name", "some"),
    [
        ("legacy_xception", ["block1", "block12", "conv3"]),
        ("resnet50", ["layer1.0", "layer4.2"]),
        ("mobilenetv2_100", ["blocks.1.0", "blocks.6.0"]),
        ("densenet121", ["features.denseblock1", "features.transition1"]),
        ("swin_tiny_patch4_window7_224", ["layers.0.blocks.1", "layers.2.blocks.5"]),
        ("convnext_atto", ["stem", "stages.2.blocks.5"]),
        ("vit_tiny_patch16_224", ["blocks.0", "blocks.11"]),
    ],
)
def test_blocks_of_backbones(name, some):
    with torch.device("meta"):
        backbone = create_backbone(name, 224)
    found = blocks(backbone)
    names = [n for n, module in backbone.named_modules() if module in found]
    assert set(some) <= set(names)
    # None within another, which would be computed three times.
    assert not [n for n in names for outer in names if n.startswith(f"{outer}.")]


def test_need_follows_what_goes_in():
    small, large = (
        measure_need(create_network("test_efficientnet", "ab", init="random", tile_size=size),
                     "part_a", "float32")
        for size in (64, 128)
    )  # fmt: skip
    assert large.plain == pytest.approx(4 * small.plain, rel=0.05)
    assert large.fixed == pytest.approx(small.fixed, rel=0.01)
    assert large.checkpointed < 0.7 * large.plain
    assert small.of(10, True) == small.fixed + 10 * small.checkpointed
    assert small.of(10, False) == small.fixed + 10 * small.plain


def test_need_counts_what_autograd_keeps():
    """Of a network whose activations can be counted by hand."""
    net = create_network("test_efficientnet", "ab", init="random", tile_size=8)
    net.part_a = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sigmoid(), nn.Flatten())
    net.part_b = nn.Linear(5 * 64, 2)
    need = measure_need(net, "part_a", "float32")
    pixels, maps, weights = 3 * 64 * 4, 5 * 64 * 4, (15 + 5) * 4
    assert need.plain == pixels + maps + memory.PASSING * maps
    assert need.fixed == memory.WEIGHT_COPIES * weights


def test_measuring_leaves_network_and_random_numbers_alone():
    net = create_network("test_efficientnet", "ab", init="random", tile_size=64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    measure_need(net, "all", "bfloat16")
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert not unequal(dict(net.state_dict()), before)
    assert not net.training and all(p.requires_grad for p in net.parameters())


def test_bfloat16_needs_less_and_frozen_parts_nothing():
    net = create_network("test_efficientnet", "ab", init="random", tile_size=96)
    full, half, part_b = (
        measure_need(net, *how)
        for how in (("part_a", "float32"), ("part_a", "bfloat16"), ("part_b", "float32"))
    )
    assert half.plain < 0.75 * full.plain
    assert part_b.plain < 0.05 * full.plain


TRAIN = """
import psutil, torch
from contextlib import nullcontext
from tiaft_plugin.finetune.memory import checkpoint_activations, peak_gib
from tiaft_plugin.network import create_network
net = create_network("resnet18", "ab", init="random", tile_size=224)
net.train().part_a.to(memory_format=torch.channels_last)
pixels = torch.randint(0, 256, (TILES, 224, 224, 3), dtype=torch.uint8)
before = psutil.Process().memory_info().rss
with checkpoint_activations(net.part_a) if CHECKPOINTED else nullcontext():
    with torch.autocast("cpu", torch.bfloat16, enabled=BFLOAT16):
        loss = net(pixels).float().square().mean()
    loss.backward()
print(peak_gib(torch.device("cpu")) * 2**30 - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks are measured as Linux tells them")
@pytest.mark.parametrize(
    ("precision", "checkpointed"), [("float32", False), ("float32", True), ("bfloat16", False)]
)
def test_estimate_against_the_peak_of_a_process(precision, checkpointed):
    net = create_network("resnet18", "ab", init="random", tile_size=224)
    estimate = measure_need(net, "all", precision).of(16, checkpointed)
    how = {"TILES": 16, "CHECKPOINTED": checkpointed, "BFLOAT16": precision == "bfloat16"}
    code = TRAIN
    for name, value in how.items():
        code = code.replace(name, str(value))
    done = processes.run(code)
    assert done.returncode == 0, done.stderr
    # Too much is safe, and processors differ in what they take; too little would end a training.
    assert 0.7 < estimate / float(done.stdout) < 2


def pretend(monkeypatch, gib: float) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: int(gib * GIB))


NEED = Need(fixed=GIB, plain=GIB // 10, checkpointed=GIB // 20)  # of 100 tiles: 11 or 6 GiB


def test_auto_checkpoints_where_memory_is_short(monkeypatch):
    pretend(monkeypatch, 16)
    assert decide("auto", NEED, 100, CPU) == (False, "")
    assert decide("on", NEED, 100, CPU) == (True, "")
    pretend(monkeypatch, 12)
    twice, note = decide("auto", NEED, 100, CPU)
    assert twice
    assert note == (
        "activations are checkpointed: 100 tiles a batch would take about 11.0 GiB of memory, "
        "12.0 GiB are free on cpu; so it takes about 6.0 GiB and more time, with the same result"
    )


@pytest.mark.parametrize("choice", ["auto", "on"])
def test_what_does_not_fit_is_refused_before_training(monkeypatch, choice):
    pretend(monkeypatch, 4)
    text = (
        r"100 tiles a batch takes about 6\.0 GiB of memory even with activation checkpointing, and "
        r"4\.0 GiB are free on cpu: free some, or pass a smaller --batch-size \(then with --freeze"
    )
    with pytest.raises(TiaftError, match=text):
        decide(choice, NEED, 100, CPU)
    assert decide("off", NEED, 100, CPU) == (False, "")


def write_cgroup(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory__max": "1000\n", "memory__current": "900", "memory__stat": "inactive_file 50"},
         150),
        ({"memory__max": "max\n", "memory__current": "900", "memory__stat": "inactive_file 50"},
         None),
        ({"memory__max": "1000", "memory__current": "1200", "memory__stat": "anon 3"}, 0),
        ({"memory__limit_in_bytes": "500", "memory__usage_in_bytes": "200",
          "memory__stat": "total_inactive_file 7\ncache 9"}, 307),
        ({}, None),
        ({"memory__max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_limits_of_containers(tmp_path, files, left):
    write_cgroup(tmp_path / "group", **files)
    assert memory._left_in(tmp_path / "group") == ([] if left is None else [left])


def test_free_memory_is_what_this_machine_has():
    assert 0 < free_memory(CPU) < 2**50


def test_auto_is_bfloat16_where_there_are_instructions(monkeypatch):
    for instructions, picked in (
        ({"avx2", "avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        ({"avx512_f", "avx512_bw"}, "float32"),
        (set(), "float32"),
    ):
        monkeypatch.setattr(precision, "_instructions", lambda found=instructions: found)
        assert pick_precision("auto", CPU) == picked
        assert bool(slow_bfloat16("bfloat16", CPU)) == (picked == "float32")
        assert not slow_bfloat16("auto", CPU) and not slow_bfloat16("float32", CPU)
    assert pick_precision("bfloat16", CPU) == "bfloat16"
    assert pick_precision("float32", CPU) == "float32"
    assert not has_bfloat16(torch.device("mps"))
    with pytest.raises(TiaftError, match="there is no precision float16: there is auto, float32"):
        pick_precision("float16", CPU)


def test_old_torch_and_other_systems(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert environment(CPU, "float32")["processor"]
    monkeypatch.setattr(precision, "_cpuinfo", lambda field: "")
    assert precision._instructions() == set()
    assert pick_precision("auto", CPU) == "float32"
    json.dumps(environment(CPU, "float32"))


def test_environment_tells_what_decides_bits(monkeypatch):
    before = environment(CPU, "float32")
    assert json.loads(json.dumps(before)) == before
    assert environment(CPU, "float32") == before
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    now = environment(CPU, "bfloat16")
    assert now == before | {"precision": "bfloat16", "threads": 77, "ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_layout_avoids_what_kills_the_process():
    with torch.device("meta"):
        for name in ("repvgg_a0", "mobileone_s0"):
            assert memory_format(create_backbone(name, 224)) == torch.contiguous_format
        for name in ("legacy_xception", "mobilenetv2_100", "resnet50", "densenet121"):
            assert memory_format(create_backbone(name, 224)) == torch.channels_last
