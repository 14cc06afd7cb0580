"""From slides and their expression to a model file: a job of the two finetuners."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tiaft_extensions.transcriptomics.expression.scaling import GeneScale, scale_genes
from tiaft_extensions.transcriptomics.tune.bags import Bags, ImageBags, cache_images, cache_stores
from tiaft_extensions.transcriptomics.tune.loop import Progress, Split, Tuned, Work, run
from tiaft_extensions.transcriptomics.tune.losses import Contrastive, Direct
from tiaft_extensions.transcriptomics.tune.outputs import FILES, write_run
from tiaft_extensions.transcriptomics.tune.projected import HEAD, SUFFIX, WIDTH, fill
from tiaft_extensions.transcriptomics.tune.settings import TuneSettings, read_settings
from tiaft_extensions.transcriptomics.tune.towers import Encoder, ImageTower, trained_modules
from tiaft_plugin.engine.store import read_store
from tiaft_plugin.errors import TiaftError
from tiaft_plugin.files import refuse_existing, sha256_of
from tiaft_plugin.finetune.interface import FinetuneJob, FinetuneResult, Samples
from tiaft_plugin.finetune.origin import describe_init, licence_of
from tiaft_plugin.finetune.processes import is_first, launched, make_fabric, quiet
from tiaft_plugin.finetune.unfinished import is_being_written, now_written, unfinished
from tiaft_plugin.network.backbone import DEFAULT_TILE_SIZE, pooled_width
from tiaft_plugin.network.card import has_card, read_card
from tiaft_plugin.network.create import create_network
from tiaft_plugin.network.device import pick_device
from tiaft_plugin.network.net import Network
from tiaft_plugin.network.precision import environment, exact_float32, pick_precision
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.plugins import call_hook
from tiaft_plugin.reproduce.leftout import LeftOut
from tiaft_plugin.tiles.stain import normaliser
from tiaft_plugin.tiles.words import some

CACHED = 2048  # tiles of a slide whose features are kept, as many as TANGLE takes
MAX_HIDDEN = 4096
_FEW = 2


@dataclass(frozen=True)
class Data:
    """A job's slides by name of the set, and the genes that are learnt from."""

    sets: dict[str, Samples]
    scale: GeneScale
    left: LeftOut


def run_job(job: FinetuneJob, objective: str) -> FinetuneResult:
    """Fine-tune as a job says; `objective` is "direct" or "contrastive".

    Everything that can be refused is refused before training. Interrupted at any moment, the same
    job goes on, and ends on one machine's CPU with the files of an undisturbed run. Raises
    TiaftError.
    """
    settings = _settings_of(job)
    if not job.overwrite and not is_being_written(job.out):
        for name in FILES:
            refuse_existing(job.out / name)
    device = pick_device(job.device)
    data = _check(job, settings)
    net = _create(job)
    trained_modules(net.part_a, settings)  # which refuses more blocks than there are
    precision: Any = pick_precision(job.precision, device)
    job = replace(job, precision=precision)
    decides = _decides(job, settings, objective, data, net)
    around = environment(device, precision)
    cuda = [device] if device.type == "cuda" else []
    with (
        unfinished(job, decides, around, first=is_first(job)) as (folder, warnings),
        torch.random.fork_rng(devices=cuda),
        quiet(),
    ):
        fabric = make_fabric(job, device)
        tuned = _tuned(net, settings, objective, len(data.scale.names), job)
        # Before other processes wait for it: they would lose patience.
        bags = _bags(job, settings, data, net, folder, device)
        splits = {name: _split(its, data, bags[name]) for name, its in data.sets.items()}
        with launched(fabric):
            train = splits.pop("train")
            if fabric.global_rank == 0:
                call_hook("stage_started", stage=1, network=net)
            minutes, steps = job.checkpoint_minutes, job.checkpoint_steps
            work = Work(tuned, settings, train, splits, fabric, job.seed, folder, minutes, steps)
            found = run(work)
            if fabric.global_rank == 0:
                call_hook("stage_ended", stage=1, network=net)
        now_written(folder)
        tuned.cpu().eval()
        model = _finished(job, net, tuned, settings, objective, found, data, around)
        told = (*job.notes, *warnings)
        return write_run(job, model, tuned, found, data, settings, objective, told)


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


def _check(job: FinetuneJob, settings: TuneSettings) -> Data:
    """Return the slides and genes of a job. Raises TiaftError for what cannot be learnt from."""
    sets = {"train": job.train, "val": job.val, "test": job.test}
    found = {name: its for name, its in sets.items() if its is not None}
    for name, its in found.items():
        if not isinstance(its, Samples):
            raise TiaftError(f"{name}: slides with expression are wanted (Samples), not tile sets")
        _check_set(name, its)
    samples: dict[str, Samples] = found  # type: ignore[assignment]
    train = samples["train"]
    _refuse_shared(samples)
    for name, its in samples.items():
        if its.target_names != train.target_names:
            raise TiaftError(f"the {name} slides have other genes than the training slides")
    patients = _patients(train)
    if len(set(patients)) < _FEW:
        raise TiaftError(f"{len(set(patients))} patients to learn from: at least {_FEW} are needed")
    left = LeftOut()
    values = np.array(train.targets, dtype=np.float64)
    # A patient counts once, whatever the number of slides.
    first = sorted({patient: row for row, patient in reversed(list(enumerate(patients)))}.values())
    scale = scale_genes(values[first], train.target_names, most=settings.genes, left=left)
    return Data(samples, scale, left)


def _check_set(name: str, samples: Samples) -> None:
    shape = np.shape(samples.targets)
    if len(shape) != 2 or shape != (len(samples.files), len(samples.target_names)):
        raise TiaftError(
            f"{name}: {len(samples.files)} slides and {len(samples.target_names)} genes, but "
            f"expression of shape {shape}"
        )
    empty = [str(n) for n, files in enumerate(samples.files) if not files]
    if empty:
        raise TiaftError(f"{name}: slides without a tile: number {some(empty)}: leave them out")
    bad = np.argwhere(~np.isfinite(np.array(samples.targets, dtype=np.float64)))
    if len(bad):
        row, gene = bad[0].tolist()
        raise TiaftError(
            f"{name}: {len(bad)} values of expression are NaN or infinite, the first of gene "
            f"{samples.target_names[gene]} in slide {samples.groups[row] or row}"
        )


def _patients(samples: Samples) -> list[str]:
    """Return the patient of each slide; one without is its own."""
    return [group or f"slide {n}" for n, group in enumerate(samples.groups)]


def _refuse_shared(sets: dict[str, Samples]) -> None:
    named = {name: {g for g in its.groups if g is not None} for name, its in sets.items()}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(named.get(one, set()) & named.get(other, set()))
        if shared:
            raise TiaftError(f"{len(shared)} patients stand in {one} and {other}: {some(shared)}")


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
    job: FinetuneJob, settings: TuneSettings, objective: str, data: Data, net: Network
) -> dict[str, Any]:
    """Return what decides the result: an interrupted run goes on with the same only."""
    about = {f"{name} slides": _identity(job, its) for name, its in data.sets.items()}
    return {
        **asdict(settings),
        **about,
        "objective": objective,
        "weights": sha256_of_weights(net),
        "pixels": [net.card.mean, net.card.std, net.card.tile_size, job.stain],
        "genes": _digest(list(data.scale.names)),
        "seed": job.seed,
        "processes": job.devices * job.nodes,
    }


def _identity(job: FinetuneJob, samples: Samples) -> str:
    """Return a hash of slides: of tiles' bytes, or of stores' facts; and of their expression."""
    if job.inputs == "bags":
        files = [[sha256_of(file) for file in its] for its in samples.files]
    else:
        files = [[_store_identity(path) for path in its] for its in samples.files]
    values = hashlib.sha256(np.array(samples.targets, dtype=np.float64).tobytes()).hexdigest()
    return _digest([files, values, samples.groups])


def _store_identity(path: Path) -> str:
    facts = read_store(path).facts
    return f"{facts['settings_sha256']} {facts['tiles_sha256']}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _tuned(
    net: Network, settings: TuneSettings, objective: str, genes: int, job: FinetuneJob
) -> Tuned:
    torch.manual_seed(job.seed)
    encoder = None
    if settings.train != "head":
        encoder = Encoder(net, trained_modules(net.part_a, settings))
        encoder.precision = job.precision
    tower = ImageTower(pooled_width(net.part_a), settings, encoder)
    if objective == "direct":
        return Tuned(tower, Direct(settings.width, genes, settings.head))
    hidden = settings.hidden or min(genes, MAX_HIDDEN)
    temperature, dropout = settings.temperature, settings.dropout
    return Tuned(tower, Contrastive(settings.width, genes, hidden, temperature, dropout))


def _bags(
    job: FinetuneJob,
    settings: TuneSettings,
    data: Data,
    net: Network,
    folder: Path,
    device: torch.device,
) -> dict[str, Bags]:
    """Return each set's tiles: images where the encoder learns, else features, cached."""
    found: dict[str, Bags] = {}
    for name, samples in data.sets.items():
        # By what decides them: a run with other settings may have been killed here.
        decides = [_identity(job, samples), sha256_of_weights(net), job.stain, job.seed]
        cache = folder / f"features-{name}-{_digest(decides)[:16]}"
        if job.inputs == "slides":
            _refuse_other_models(job, samples, net)
            found[name] = cache_stores(samples.files, cache, CACHED, job.seed)
            continue
        images = ImageBags(samples.files, net.card.tile_size, normaliser(job.stain))
        if settings.train == "head":
            net.to(device)
            with exact_float32():
                found[name] = cache_images(images, net.pooled, cache, CACHED, job.seed)
            net.cpu()
        else:
            found[name] = images
    return found


def _refuse_other_models(job: FinetuneJob, samples: Samples, net: Network) -> None:
    """Raise TiaftError for stores of features that the job's encoder does not give."""
    own = sha256_of(job.init) if Path(job.init).is_file() else ""
    for path in (path for its in samples.files for path in its):
        store = read_store(path)
        width = pooled_width(net.part_a)
        if own and store.facts["model"]["sha256"] != own:
            raise TiaftError(
                f"{path} has features of model {store.facts['model']['name']}, not of {job.init}: "
                "give the model that extracted them"
            )
        if store.values.shape[1] != width:
            raise TiaftError(
                f"{path} has {store.values.shape[1]} features, {net.card.backbone} gives {width}: "
                "give the model that extracted them"
            )


def _split(samples: Samples, data: Data, bags: Bags) -> Split:
    values = np.array(samples.targets, dtype=np.float64)
    _, patients = np.unique(_patients(samples), return_inverse=True)
    expression = torch.from_numpy(data.scale(values))
    return Split(bags, expression, torch.from_numpy(patients.astype(np.int64)))


def _finished(
    job: FinetuneJob,
    net: Network,
    tuned: Tuned,
    settings: TuneSettings,
    objective: str,
    found: Progress,
    data: Data,
    around: dict[str, Any],
) -> Network:
    """Return the network of the model file: the tuned encoder, or the old one with a projection."""
    card = net.card
    if settings.train == "head":
        args = {**card.backbone_args, WIDTH: settings.width, HEAD: settings.head}
        made = Network(replace(card, backbone=card.backbone + SUFFIX, backbone_args=args))
        fill(made.part_a, net.part_a, tuned.tower.projection)
        net = made.eval()
    kept = found.best["epoch"] if found.best else settings.epochs
    about = {
        "finetuner": f"expression-{objective}",
        "seed": job.seed,
        **asdict(settings),
        "kept_epoch": kept,
        "genes": len(data.scale.names),
        "metrics": {
            row["split"]: {k: v for k, v in row.items() if k not in ("split", "epoch", "lr")}
            for row in found.rows
            if row["epoch"] == kept
        },
        "versions": {name: version(name) for name in ("tiaft_plugin", "torch", "timm")},
        "environment": {k: v for k, v in around.items() if not k.endswith(" version")},
    }
    slides = {name: len(its.files) for name, its in data.sets.items()}
    patients = {name: len(set(_patients(its))) for name, its in data.sets.items()}
    net.card = replace(
        net.card,
        training=card.training | about,
        data={"name": job.train.root.resolve().name, "slides": slides, "patients": patients},
        source=f"{card.source}; tuned on expression of {slides['train']} slides",
    )
    return net
