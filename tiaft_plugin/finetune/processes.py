"""One process or several, by Lightning's Fabric: who is first, and how they begin and end."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy

from tiaft_plugin.errors import Stopped, TiaftError, first_line
from tiaft_plugin.finetune.interface import FinetuneJob

PATIENCE = timedelta(hours=1)  # with a process that reads and hashes all tiles, or is lost
_GLOBAL_RANKS = ("RANK", "SLURM_PROCID")  # torchrun's, and Slurm's


def is_first(job: FinetuneJob) -> bool:
    """Tell whether this process is the one that writes, prints and computes what is done once."""
    if job.devices * job.nodes == 1:
        return True
    given = [os.environ[name] for name in _GLOBAL_RANKS if name in os.environ]
    ranks = given[:1] or [os.environ.get(name, "0") for name in ("NODE_RANK", "LOCAL_RANK")]
    return all(rank == "0" for rank in ranks)


def make_fabric(job: FinetuneJob, device: torch.device) -> Fabric:
    """Return Lightning's Fabric for a job, not yet launched.

    On one device it takes no part in clusters, even where Slurm or torchrun are around. On
    several, it starts the other processes of this machine itself, or finds those of Slurm or
    torchrun. Raises TiaftError for devices that are not there, or not as they have started them.
    """
    several = job.devices * job.nodes > 1
    kind = {"cuda": "gpu"}.get(device.type, device.type)
    devices = [device.index or 0] if device.type == "cuda" and not several else job.devices
    if device.type == "cuda" and job.devices > torch.cuda.device_count():
        raise TiaftError(
            f"--devices {job.devices}: this machine has {torch.cuda.device_count()} GPUs"
        )
    if several and device.type not in ("cpu", "cuda"):
        raise TiaftError(f"--devices and --nodes need GPUs or CPUs, not {device.type}")
    if several and not hasattr(sys.modules["__main__"], "__file__"):
        raise TiaftError(
            "--devices starts the program again for each process: run tiaft or a script, not a "
            "notebook or python -c"
        )
    fabric = Fabric(
        accelerator=kind,
        devices=devices,
        num_nodes=job.nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if several else "auto",
        plugins=None if several else [LightningEnvironment()],
    )
    if isinstance(fabric.strategy, DDPStrategy) and fabric.strategy.cluster_environment:
        try:
            fabric.strategy.cluster_environment.validate_settings(job.devices, job.nodes)
        except ValueError as error:
            raise TiaftError(
                f"--devices {job.devices} --nodes {job.nodes}: {first_line(error)}"
            ) from error
    _refuse_alone(fabric, job.nodes)
    return fabric


def _refuse_alone(fabric: Fabric, nodes: int) -> None:
    """Raise TiaftError where nothing tells of the other machines: they would be waited for."""
    around = getattr(fabric.strategy, "cluster_environment", None)
    alone = isinstance(around, LightningEnvironment) and "MASTER_ADDR" not in os.environ
    if nodes > 1 and alone:
        raise TiaftError(
            f"--nodes {nodes}: no other machine is known here: start the same command on all with "
            "srun or torchrun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each"
        )


@contextmanager
def launched(fabric: Fabric) -> Iterator[None]:
    """Have all processes run the block; afterwards all but the first end.

    What a script does next would else be done by each of them. Raises Stopped where another
    process has ended before.
    """
    before, threads, first = dict(os.environ), torch.get_num_threads(), True
    try:
        fabric.launch()
        first = fabric.global_rank == 0
        yield
        fabric.barrier()
    except KeyboardInterrupt:
        if first:
            raise
        # The first process says so; another exit code would have Lightning kill it before.
        raise SystemExit(0) from None
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, torch.distributed.DistError):
            raise
        raise Stopped(
            f"process {fabric.global_rank} lost the others ({first_line(error)}): one of them has "
            "ended, and may have said why"
        ) from error
    finally:
        if fabric.world_size > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()  # of Lightning's variables, which the next run would take for its own
        os.environ.update(before)
        torch.set_num_threads(threads)  # which Lightning shared out among the processes
    if not first:
        raise SystemExit(0)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice."""
    import logging

    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
