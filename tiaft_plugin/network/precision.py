"""In which precision a network computes, and what else decides its bits on this machine."""

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tiaft_plugin.errors import TiaftError

PRECISIONS = ("float32", "bfloat16")
PACKAGES = ("tiaft_plugin", "torch", "timm", "lightning", "numpy", "pillow")
# Variables by which oneDNN, MKL and torch are told to leave instructions unused.
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")


def pick_precision(name: str, device: torch.device) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 where the device has instructions.

    Weights, gradients and the optimiser are float32 in both. Raises TiaftError.
    """
    if name == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if name not in PRECISIONS:
        raise TiaftError(f"there is no precision {name}: there is auto, {', '.join(PRECISIONS)}")
    return name


def slow_bfloat16(name: str, device: torch.device) -> list[str]:
    """Return a warning where bfloat16 was asked for by name and brings nothing, else none."""
    if name != "bfloat16" or has_bfloat16(device):
        return []
    return [
        f"bfloat16 was asked for, but {_device_name(device)} has no instructions for it: training "
        "is slower and less exact than with --precision float32"
    ]


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes convolutions in bfloat16 by instructions of its own."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # Not torch.ops.mkldnn._is_mkldnn_bf16_supported(): AVX-512 is enough for that.
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_instructions())


def memory_format(network: nn.Module) -> torch.memory_format:
    """Return in which order tiles and weights lie in memory: channels last, which is faster.

    oneDNN, as torch 2.12 has it, writes where it must not when it trains a convolution of 1×1
    with strides on few channels (the stem of RepVGG and MobileOne): the process dies.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    fatal = any(
        set(layer.kernel_size) == {1} and set(layer.stride) != {1} and layer.in_channels < 16
        for layer in layers
    )
    return torch.contiguous_format if fatal else torch.channels_last


@contextmanager
def exact_float32() -> Iterator[None]:
    """Have a GPU compute float32 convolutions in float32: cuDNN would leave out half the digits."""
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
        yield


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return what decides the bits of a training besides its settings, to be kept as JSON.

    Versions, device and precision; on a CPU also its model, instructions and caches, by which
    oneDNN chooses how to compute, and the number of threads that share a sum.
    """
    found: dict[str, Any] = {f"{name} version": _version(name) for name in PACKAGES}
    found |= {
        "device": _device_name(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": " ".join(sorted(_instructions())),
        "caches": str([_capabilities().get(f"{level}_cache_size") for level in ("l1d", "l2")]),
        "oneDNN": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        "matmul": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        found |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return found | {name: os.environ[name] for name in VARIABLES if name in os.environ}


def _capabilities() -> Mapping[str, Any]:
    return getattr(torch.cpu, "get_capabilities", dict)()


def _instructions() -> set[str]:
    """Return the names of instruction sets; none where neither torch nor Linux tells them."""
    names = {name for name, there in _capabilities().items() if there is True}
    return names or set(_cpuinfo("flags").split())


def _processor() -> str:
    named = _capabilities().get("cpu_name") or _cpuinfo("model name")
    return named or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """Return a field of the first processor in Linux' list, or nothing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else device.type


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
