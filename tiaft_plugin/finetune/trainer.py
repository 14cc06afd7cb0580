"""Lightning, kept quiet and interruptible, on one device."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment


def make_trainer(device: torch.device, epochs: int) -> pl.Trainer:
    """Return a trainer that writes no file, prints nothing and takes no part in clusters."""
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=epochs,
        plugins=[LightningEnvironment()],  # under SLURM, Lightning would take over signals
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@contextmanager
def quiet_and_interruptible() -> Iterator[None]:
    """Silence Lightning's advice, and let Ctrl-C through as KeyboardInterrupt.

    Lightning turns it into SystemExit, and leaves the process deaf to further ones.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    handler = signal.getsignal(signal.SIGINT)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
