"""What the networks of a study cost, measured side by side on this machine."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from tiaft_extensions.truncation.backbones.macs import macs_of, parameters_of, tiles_per_second
from tiaft_extensions.truncation.study.grid import Variant
from tiaft_extensions.truncation.study.settings import StudySettings
from tiaft_extensions.truncation.study.training import backbone_of
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import write_atomically
from tiaft_plugin.network.backbone import create_backbone, pooled_width
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.progress import progress

FILE = "costs.json"


@dataclass(frozen=True)
class Cost:
    """A backbone's features, weights, multiply-accumulates of one tile, and tiles a second."""

    width: int
    parameters: int
    macs: int
    tiles_per_second: float | None = None


def cost_of(variant: Variant, settings: StudySettings, tile_size: int) -> Cost:
    """Return what a variant's backbone costs, but for the time. Raises TiaftError."""
    return _counted(_create(backbone_of(variant), variant, settings, tile_size), tile_size)


def _counted(module: nn.Module, tile_size: int) -> Cost:
    return Cost(pooled_width(module), parameters_of(module), macs_of(module, tile_size))


def measured_costs(
    variants: Sequence[Variant], settings: StudySettings, tile_size: int
) -> dict[Variant, Cost]:
    """Return what variants cost, tiles a second of each measured one after the other.

    They are kept in the study's folder, and measured again, all of them, where one is new.
    """
    names = {backbone_of(variant): variant for variant in variants}
    known = _read(settings.out / FILE)
    if not names.keys() <= known.keys():
        known = _measure(names, settings, tile_size)
        with write_atomically(settings.out / FILE) as temporary:
            content = {name: asdict(cost) for name, cost in known.items()}
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return {variant: known[backbone_of(variant)] for variant in variants}


def _measure(names: dict[str, Variant], settings: StudySettings, tile_size: int) -> dict[str, Cost]:
    device, found = pick_device(settings.device), {}
    with progress(len(names), "Speed", "network") as bar:
        for name, variant in names.items():
            module = _create(name, variant, settings, tile_size)
            cost = _counted(module, tile_size)
            module.to(device, memory_format=torch.channels_last)
            speed = tiles_per_second(module, tile_size, seconds=0.5)
            found[name] = replace(cost, tiles_per_second=speed)
            bar.update(1)
    return found


def _create(name: str, variant: Variant, settings: StudySettings, tile_size: int):
    own = variant.backbone == settings.backbone
    with torch.random.fork_rng(devices=[]):
        return create_backbone(name, tile_size, settings.backbone_args if own else {}).eval()


def _read(path: Path) -> dict[str, Cost]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: Cost(**cost) for name, cost in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise TiaftError(f"{path} is damaged: remove it to measure again") from error
