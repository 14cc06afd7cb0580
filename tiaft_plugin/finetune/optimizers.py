"""Who moves the weights, and how fast: a plug-in's choice, or the recipe's."""

from inspect import Parameter, signature
from io import BytesIO
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.serialization import get_unsafe_globals_in_checkpoint

from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.recipes import Recipe, Stage
from tiaft_plugin.plugins import call_hook


class Driver:
    """An optimiser and its schedule: a plug-in's (``choose_optimizer``), else the recipe's.

    `steps` are those of the whole stage. Raises TiaftError for what is no torch optimiser.
    """

    def __init__(self, recipe: Recipe, stage: Stage, parameters: list, steps: int):
        self.recipe = recipe
        chosen = call_hook(
            "choose_optimizer", stage=stage.number, parameters=parameters, lr=stage.lr, steps=steps
        )
        optimizer, scheduler = chosen if isinstance(chosen, tuple) else (chosen, None)
        if not isinstance(optimizer, torch.optim.Optimizer | None):
            raise TiaftError(f"choose_optimizer gave {optimizer!r}, which is no torch optimiser")
        if not isinstance(scheduler, LRScheduler | None):
            raise TiaftError(f"choose_optimizer gave {scheduler!r}, which is no torch scheduler")
        if isinstance(scheduler, ReduceLROnPlateau):
            raise TiaftError(
                "choose_optimizer gave ReduceLROnPlateau, which steps by losses, not by training "
                "steps: pass --finetuner-arg schedule=plateau"
            )
        if optimizer is not None and _needs_closure(optimizer):
            raise TiaftError(
                f"choose_optimizer gave {type(optimizer).__name__}, whose step computes the loss "
                "several times: choose one that takes one step a batch"
            )
        self.optimizer = optimizer or _optimizer(recipe, parameters, stage.lr)
        self.each_step, self.each_epoch = scheduler, None
        if optimizer is None:
            self.each_step, self.each_epoch = _schedules(recipe, self.optimizer)
        _refuse_no_plain_values(self.state_dict())

    @property
    def lr(self) -> float:
        """The learning rate now."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """Note that a training step has been made."""
        if self.each_step is not None:
            self.each_step.step()

    def epoch(self, loss: float | None) -> bool:
        """Note that an epoch has ended with a loss on validation tiles; tell whether to stop."""
        if self.each_epoch is None or loss is None:
            return False
        self.each_epoch.step(loss)
        return self.lr < self.recipe.min_lr

    def state_dict(self) -> dict[str, Any]:
        """Return what an interruption must not lose."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        return states | {"kinds": self._kinds()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises TiaftError where it is of another optimiser or schedule."""
        now, before = self._kinds(), state["kinds"]
        if now != before:
            raise TiaftError(
                f"training goes by {' and '.join(now.values())} now, and went by "
                f"{' and '.join(before.values())} before the interruption: have the same plug-ins "
                "as then, or remove the run's folder .unfinished to begin anew"
            )
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        """Return what has a state, the optimiser last: schedulers write into it."""
        parts = {"step": self.each_step, "epoch": self.each_epoch, "optimizer": self.optimizer}
        return {name: part for name, part in parts.items() if part is not None}

    def _kinds(self) -> dict[str, str]:
        return {name: type(part).__name__ for name, part in reversed(self._parts().items())}


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    closure = signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty


def _refuse_no_plain_values(state: dict[str, Any]) -> None:
    """Raise TiaftError for a state that a checkpoint could hold, but not give back."""
    written = BytesIO()
    torch.save(state, written)
    written.seek(0)
    strange = get_unsafe_globals_in_checkpoint(written)
    if strange:
        raise TiaftError(
            f"choose_optimizer gave something whose state holds {strange[0]}, which checkpoints "
            "do not: give optimisers and schedulers plain numbers"
        )


def _optimizer(recipe: Recipe, parameters: list, lr: float) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=lr, eps=recipe.eps, weight_decay=recipe.weight_decay)


def _schedules(
    recipe: Recipe, optimizer: torch.optim.Optimizer
) -> tuple[LRScheduler | None, ReduceLROnPlateau | None]:
    if recipe.schedule == "inverse-time":
        decay = recipe.decay
        return LambdaLR(optimizer, lambda step: 1 / (1 + decay * step)), None
    if recipe.schedule == "plateau":
        return None, ReduceLROnPlateau(optimizer, factor=recipe.factor, patience=recipe.patience)
    return None, None
