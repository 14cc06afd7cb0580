"""From slides and their expression to a model file: a job of the two finetuners."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.transcriptomics.tune.bags import Bags, FeatureBags
from tiaft_extensions.transcriptomics.tune.cached import Cache, digest, identity
from tiaft_extensions.transcriptomics.tune.checks import Data, check_data, patients_of
from tiaft_extensions.transcriptomics.tune.loop import SlideEpochs, Split, Tuned
from tiaft_extensions.transcriptomics.tune.losses import Contrastive, Direct
from tiaft_extensions.transcriptomics.tune.outputs import (
    Outcome,
    files_of,
    refuse_results,
    write_run,
)
from tiaft_extensions.transcriptomics.tune.projected import HEAD, SUFFIX, WIDTH, fill
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings, read_settings
from tiaft_extensions.transcriptomics.tune.tested import Tested, measure_test
from tiaft_extensions.transcriptomics.tune.towers import ImageTower, trained_modules
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.finetune.encoder import Encoder
from tiaft_plugin.finetune.epochs import Work
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Samples
from tiaft_plugin.finetune.origin import describe_init, licence_of
from tiaft_plugin.finetune.processes import is_first, launched, make_fabric, quiet
from tiaft_plugin.finetune.unfinished import now_written, unfinished
from tiaft_plugin.network.backbone import DEFAULT_TILE_SIZE, pooled_width
from tiaft_plugin.network.card import has_card, read_card
from tiaft_plugin.network.create import create_network
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import environment, pick_precision
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.progress import hide_progress

CACHED = 2048  # tiles of a slide whose features are kept, as many as TANGLE takes
MAX_HIDDEN = 4096


def run_job(job: FinetuneJob, objective: str) -> FinetuneResult:
    """Fine-tune as a job says; `objective` is "direct" or "contrastive".

    Everything that can be refused is refused before training. Interrupted at any moment, the same
    job goes on, and ends on one machine's CPU with the files of an undisturbed run. Raises
    TiaftError.
    """
    settings = _settings_of(job)
    refuse_results(job.out, files_of(job), overwrite=job.overwrite)
    device, first = pick_device(job.device), is_first(job)
    data = check_data(job, settings, objective)
    net = _create(job)
    if settings.train == "head" and net.card.backbone.endswith(SUFFIX):
        raise TiaftError(
            f"{job.init} has a learnt projection already: give the encoder before it, or let its "
            "layers learn (--train last)"
        )
    trained_modules(net.part_a, settings)  # which refuses more blocks than there are
    precision: Any = pick_precision(job.precision, device)
    job = replace(job, precision=precision)
    identities = {name: identity(job, its) for name, its in data.sets.items()}
    decides = _decides(job, settings, objective, data, net, identities)
    around = environment(device, precision)
    cuda = [device] if device.type == "cuda" else []
    with (
        nullcontext() if first else hide_progress(),
        unfinished(job, decides, around, first=first) as (folder, warnings),
        torch.random.fork_rng(devices=cuda),
        quiet(),
    ):
        fabric = make_fabric(job, device)
        tuned = _tuned(net, settings, objective, len(data.scale.names), job)
        cache = Cache(job, data.sets, identities, folder, device)
        # Before other processes wait for it: they would lose patience.
        base, bags = _bags(settings, net, cache)
        splits = {name: _split(its, data, bags[name]) for name, its in data.sets.items()}
        with launched(fabric):
            if fabric.global_rank == 0:
                call_hook("stage_started", stage=1, network=net)
            work = Work(tuned, settings, splits["train"], splits.get("val"), job, folder)
            found = SlideEpochs(work, fabric).run()
            if fabric.global_rank == 0:
                call_hook("stage_ended", stage=1, network=net)
        tuned.cpu().eval()
        test = _test(settings, tuned, net, splits, base, cache) if "test" in splits else None
        now_written(folder)
        told = (*job.notes, *warnings, *(test.notes if test else ()))
        outcome = Outcome(job, settings, objective, data, tuned, found, test, told)
        return write_run(outcome, _finished(outcome, net, around))


def _settings_of(job: FinetuneJob) -> TuneSettings:
    """Return the settings of a job's options; its own epochs, lrs and keep come before them."""
    given = dict(job.options)
    if job.epochs is not None:
        given["epochs"] = job.epochs[0]
    if job.lrs is not None:
        given["lr"] = job.lrs[0]
    if job.batch_size is not None:
        given["slides"] = job.batch_size
    if job.keep is not None:
        given["keep"] = job.keep
    settings = read_settings(given)
    if job.inputs == "slides" and settings.train != "head":
        raise TiaftError(
            f"setting train is {settings.train}: features were computed once, so that only heads "
            "learn from them; give tiles instead"
        )
    return settings


def _create(job: FinetuneJob) -> Network:
    """Return the encoder, without Part B: what is tuned are features."""
    train = job.train
    given = read_card(job.init) if has_card(Path(job.init)) else None
    # Feature stores hold no tiles any more: those of the model that made them, then.
    own = train.tile_size or (given.tile_size if given else DEFAULT_TILE_SIZE)
    size = job.tile_size or own
    mpp = job.mpp or train.mpp or (given.mpp if given and not train.tile_size else None)
    net = create_network(
        job.backbone,
        init=job.init,
        tile_size=size,
        mpp=None if mpp is None else mpp * own / size,
        backbone_args=job.backbone_args,
        mean=job.mean,
        std=job.std,
        seed=job.seed,
    )
    licence = net.card.licence or licence_of(job.init, net.card.backbone)
    net.card = replace(net.card, training=describe_init(job.init), licence=licence)
    return net


def _decides(
    job: FinetuneJob,
    settings: TuneSettings,
    objective: str,
    data: Data,
    net: Network,
    identities: Mapping[str, str],
) -> dict[str, Any]:
    """Return what decides the result: an interrupted run goes on with the same only."""
    return {
        **asdict(settings),
        **{f"{name} slides": its for name, its in identities.items()},
        "objective": objective,
        "backbone": [net.card.backbone, net.card.backbone_args],
        "weights": sha256_of_weights(net),
        "pixels": [net.card.mean, net.card.std, net.card.tile_size, job.stain],
        "genes": digest(list(data.scale.names)),
        "seed": job.seed,
        "processes": job.devices * job.nodes,
    }


def _tuned(
    net: Network, settings: TuneSettings, objective: str, genes: int, job: FinetuneJob
) -> Tuned:
    torch.manual_seed(job.seed)
    encoder = None
    if settings.train != "head":
        trained = trained_modules(net.part_a, settings)
        encoder = Encoder(net, trained, job.precision, always=True)
    tower = ImageTower(pooled_width(net.part_a), settings, encoder)
    if objective == "direct":
        return Tuned(tower, Direct(settings.width, genes, settings.head))
    hidden = settings.hidden or min(genes, MAX_HIDDEN)
    temperature, dropout = settings.temperature, settings.dropout
    return Tuned(tower, Contrastive(settings.width, genes, hidden, temperature, dropout))


def _bags(
    settings: TuneSettings, net: Network, cache: Cache
) -> tuple[dict[str, FeatureBags], dict[str, Bags]]:
    """Return features of the untuned encoder, where they are asked for, and what is learnt from.

    These are the same where only heads learn; else they are images.
    """
    if settings.train == "head":
        kept = {name: cache.features(name, net, CACHED) for name in cache.sets}
        return kept, dict(kept)
    images: dict[str, Bags] = {name: cache.images(name, net) for name in cache.sets}
    if "test" not in cache.sets:
        return {}, images
    return {name: cache.features(name, net, settings.test_tiles) for name in cache.sets}, images


def _test(
    settings: TuneSettings,
    tuned: Tuned,
    net: Network,
    splits: Mapping[str, Split],
    base: Mapping[str, FeatureBags],
    cache: Cache,
) -> Tested:
    most, seed = settings.test_tiles, cache.job.seed
    if settings.train == "head":
        return measure_test(tuned, splits, base, base, tuned.tower.projection, most, seed)
    after = {name: cache.features(name, net, most) for name in splits}
    return measure_test(tuned, splits, base, after, None, most, seed)


def _split(samples: Samples, data: Data, bags: Bags) -> Split:
    values = np.array(samples.targets, dtype=np.float64)
    _, patients = np.unique(patients_of(samples), return_inverse=True)
    expression = torch.from_numpy(data.scale(values))
    return Split(bags, expression, torch.from_numpy(patients.astype(np.int64)))


def _finished(outcome: Outcome, net: Network, around: dict[str, Any]) -> Network:
    """Return the network of the model file: the tuned encoder, or the old one with a projection."""
    card, job, settings, data = net.card, outcome.job, outcome.settings, outcome.data
    if settings.train == "head":
        args = {**card.backbone_args, WIDTH: settings.width, HEAD: settings.head}
        made = Network(replace(card, backbone=card.backbone + SUFFIX, backbone_args=args))
        fill(made.part_a, net.part_a, outcome.tuned.tower.projection)
        net = made.eval()
    measured = {
        row["split"]: {k: v for k, v in row.items() if k not in ("split", "epoch", "lr")}
        for row in outcome.found.rows
        if row["epoch"] == outcome.kept
    }
    if outcome.test is not None:
        measured["test"] = outcome.test.main()
    about = {
        "finetuner": f"expression-{outcome.objective}",
        "seed": job.seed,
        **asdict(settings),
        "kept_epoch": outcome.kept,
        "genes": len(data.scale.names),
        "metrics": measured,
        "versions": {name: version(name) for name in ("tiaft_plugin", "torch", "timm")},
        "environment": {k: v for k, v in around.items() if not k.endswith(" version")},
    }
    slides = {name: len(its.files) for name, its in data.sets.items()}
    patients = {name: len(set(patients_of(its))) for name, its in data.sets.items()}
    net.card = replace(
        net.card,
        training=card.training | about,
        data={"name": job.train.root.resolve().name, "slides": slides, "patients": patients},
        source=f"{card.source}; tuned on expression of {slides['train']} slides",
    )
    return net
