"""Where a backbone can be cut off: names of its stages, blocks and layers, and what is then left.

A cut is the path of the last module that is kept, as timm names it (``layer3.3``, ``block8``,
``denseblock3``), or Tn, the end of stage n: of DenseNets after the transition, as Peng et al. cut
them (paper 3), while HistoTransfer's ``denseblock3`` (paper 4) lies before it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tiaft_extensions.truncation.backbones.macs import parameters_of
from tiaft_extensions.truncation.backbones.plan import (
    POOLING,
    Plan,
    Trace,
    begun_after,
    features_of,
    leave_out,
    plan_cut,
    trace,
    without_memory,
)
from tiaft_plugin.errors import TiaftError

WHOLE = "whole"  # the cut that leaves nothing out, where more than the last block comes to an end
HOLDERS = ("blocks", "features", "layers", "stages")  # children of timm's that hold all stages


@dataclass(frozen=True)
class Cut:
    """A place to cut at: its names, and what the network up to there is.

    `stage` is ``T1``, ``T2``, …, or empty; `layer` tells one inside a stage or block from its end.
    `width` is the number of features after pooling; `parameters` and `macs` (multiply-accumulates
    of one tile) are those of the network that is left.
    """

    name: str
    stage: str
    layer: bool
    width: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class _Place:
    path: str
    layer: bool
    stage: str = ""

    @property
    def name(self) -> str:
        return self.path.removeprefix("features.")


# A caller may have turned gradients off, which tell here what depends on what.
_with_gradients = torch.inference_mode(False)


@_with_gradients
def list_cuts(
    backbone: str,
    tile_size: int = 224,
    args: dict[str, Any] | None = None,
    *,
    layers: bool = True,
) -> list[Cut]:
    """Return the cuts of a backbone, shallow to deep; its weights are not needed.

    Without `layers` those inside stages and blocks are left out. Raises TiaftError.
    """
    module = without_memory(backbone, tile_size, args)
    ran = trace(module, tile_size)
    found: list[Cut] = []
    refused: list[str] = []  # blocks whose end is no place to cut at, nor are their layers
    for place in reversed(_places(module, ran)):  # the end of each stage is cut out of the later
        if place.layer and not (layers or place.stage):
            continue
        if place.path.startswith(tuple(f"{path}." for path in refused)):
            continue
        width = _width_inside(module, ran, place.path)
        if not place.layer:
            plan = _plan(module, ran, place, tile_size)
            if plan is None:
                refused.append(place.path)
                continue
            leave_out(module, plan.left_out)
            width = plan.width
        rest = [] if place.path == WHOLE else list(begun_after(module, ran, place.path))
        if place.layer and not rest:  # the last layer of a stage is its end
            continue
        parameters = parameters_of(module) - sum(
            parameters_of(module.get_submodule(path)) for path in rest
        )
        macs = ran.macs["" if place.path == WHOLE else place.path]
        found.append(Cut(place.name, place.stage, place.layer, width, parameters, macs))
    return found[::-1]


def find_cut(
    backbone: str, cut: str, tile_size: int = 224, args: dict[str, Any] | None = None
) -> Plan:
    """Return what is left out for a cut. Raises TiaftError, which lists the cuts that there are."""
    return _find(backbone, cut, tile_size, json.dumps(args or {}, sort_keys=True))


@lru_cache(maxsize=256)
@_with_gradients
def _find(backbone: str, cut: str, tile_size: int, args_json: str) -> Plan:
    args = json.loads(args_json)
    module = without_memory(backbone, tile_size, args)
    ran = trace(module, tile_size)
    places = _places(module, ran)
    if cut == WHOLE and places:  # of every network, also where its last stage's end is the same
        return Plan((), features_of(module, tile_size))
    for place in places:
        if cut and cut in (place.path, place.name, place.stage):
            plan = _plan(module, ran, place, tile_size)
            if plan is not None:
                return plan
    raise _no_such(backbone, cut, tile_size, args)


def nothing_to_cut(backbone: str) -> TiaftError:
    """Return the error for a backbone that has no cuts."""
    return TiaftError(f"{backbone} cannot be cut off: it is no chain of stages or blocks")


def _no_such(backbone: str, cut: str, tile_size: int, args: dict[str, Any]) -> TiaftError:
    ends = list_cuts(backbone, tile_size, args, layers=False)
    if not ends:
        return nothing_to_cut(backbone)
    listed = ", ".join(f"{each.name} ({each.width})" for each in ends)
    stages = ", ".join(each.stage for each in ends if each.stage)
    return TiaftError(
        f"{backbone} has no cut {cut!r}; there are, with so many features, {listed}; ends of "
        f"stages are {stages}, too; `tiaft truncate cuts {backbone} --layers` lists those inside"
    )


def _plan(module: nn.Module, ran: Trace, place: _Place, tile_size: int) -> Plan | None:
    if place.path == WHOLE:
        return Plan((), features_of(module, tile_size))
    return plan_cut(module, ran, place.path, tile_size)


def _width_inside(module: nn.Module, ran: Trace, path: str) -> int:
    """Return the channels of what goes on after a layer: in a dense block what came before, too."""
    above, _, name = path.rpartition(".")
    block = module.get_submodule(above)
    if not isinstance(block, nn.ModuleDict):
        return ran.widths.get(path, 0)
    later = list(block)[list(block).index(name) + 1 :]
    return ran.widths[above] - sum(ran.widths[f"{above}.{each}"] for each in later)


def _places(module: nn.Module, ran: Trace) -> list[_Place]:
    """Return where a module may be cut, the ends of its stages named."""
    places = [p for p in _blocks(module) if p.path in ran.ended and ran.places[p.path]]
    if not places:
        return []
    sizes = {**ran.places, WHOLE: 0}
    rest = begun_after(module, ran, places[-1].path)
    if any(parameters_of(module.get_submodule(path)) for path in rest):
        places.append(_Place(WHOLE, layer=False))
    ends = [place.path for place in places if place.name.startswith("transition")]
    if not ends:  # then where the next map is smaller
        ends = [
            place.path
            for place, later in pairwise(places)
            if 0 < sizes[later.path] < sizes[place.path]
        ]
    names = {path: f"T{n}" for n, path in enumerate([*ends, places[-1].path], start=1)}
    return [replace(place, stage=names.get(place.path, "")) for place in places]


def _blocks(module: nn.Module, above: str = "", layer: bool = False) -> Iterator[_Place]:
    """Yield blocks, and what holds them after the last of them."""
    for name, child in module.named_children():
        path = above + name
        if not above and name in HOLDERS:
            single = not any(_is_block(each) for each in child.children())
            yield from (
                (_Place(f"{path}.{n}", layer=True) for n, _ in child.named_children())
                if single  # VGG
                else _blocks(child, f"{path}.")
            )
        elif _is_block(child):
            if _holds_blocks(child):
                yield from _blocks(child, f"{path}.", layer=True)
            yield _Place(path, layer)


def _is_block(module: nn.Module) -> bool:
    """Return whether a module has parts with weights and is no head with its pooling."""
    return any(list(child.parameters()) for child in module.children()) and not any(
        isinstance(each, POOLING[:2]) for each in module.modules()
    )


def _holds_blocks(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleDict):
        return any(_is_block(child) for child in module.children())
    return isinstance(getattr(module, "blocks", None), nn.Sequential) or type(
        module
    ).__name__.endswith("Stage")
