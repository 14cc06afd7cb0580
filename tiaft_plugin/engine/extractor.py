"""TIAToolbox's engines, writing tiaft's stores: every slide by itself, resumable, verifiable.

`FeatureExtractor` and `TilePredictor` are TIAToolbox's `DeepFeatureExtractor` and
`PatchPredictor` with the same `run`. On slides they differ in this: an existing folder is used
and nothing in it removed, a slide that fails does not stop the others, and an interrupted run
goes on where it stopped.
"""

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.models.models_abc import ModelABC
from tiatoolbox.wsicore.wsireader import WSIReader
from torch.utils.data import DataLoader, Sampler

from tiaft_plugin.engine import facts, store
from tiaft_plugin.engine.compute import Compute
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.engine.naming import store_path
from tiaft_plugin.engine.parts import Part, kept_from_others, opening, parts_of
from tiaft_plugin.engine.prepare import Prepare, Stain
from tiaft_plugin.engine.reading import TileReading
from tiaft_plugin.engine.slides import has_tissue, open_slide, tissue_fractions
from tiaft_plugin.engine.timing import Timing, added
from tiaft_plugin.engine.work import Work
from tiaft_plugin.errors import SlidesFailed, Stopped, TiaftError, reason
from tiaft_plugin.files import DISK_ERRORS
from tiaft_plugin.network.precision import PRECISIONS
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.progress import progress
from tiaft_plugin.tiles.slide_stain import SlideMacenko
from tiaft_plugin.tiles.stain import Normalise, agreed_stain
from tiaft_plugin.zoo.models import BatchOutput, TileModel, model_from_file


class StoreEngine(PatchPredictor):
    """What both engines share: `process`, and a `run` that ends in stores.

    Of TIAToolbox's own methods it replaces `_update_run_params`, `_run_wsi_mode` and
    `_get_model_attr`; the rest is theirs.
    """

    kind = ""  # of the store
    view = ""  # of a model file: "features" or "classes"
    min_tissue = 0.0  # tiles with less tissue than this fraction are left out
    auto_mask = True
    split: int | None = None  # slides that lack more tiles are left to several workers

    def __init__(
        self,
        model: Any,
        *args: Any,
        stain: Stain | SlideMacenko | None = None,
        precision: str = "float32",
        compiled: bool = False,
        **kwargs: Any,
    ):
        ioconfig = None
        if isinstance(model, str | Path) and Path(model).suffix == ".safetensors":
            model, ioconfig = model_from_file(Path(model), view=self.view)
        super().__init__(model, *args, **kwargs)
        if ioconfig is not None:
            self.ioconfig = self._ioconfig = ioconfig
        if precision not in ("auto", *PRECISIONS):
            raise TiaftError(
                f"there is no precision {precision}: there is auto, {', '.join(PRECISIONS)}"
            )
        self.precision, self.compiled = precision, compiled
        self._computes: dict[tuple, Compute] = {}
        own = getattr(self._bare_model(), "stain", None)
        self.stain = agreed_stain(own, stain, self.model_facts["name"]) if own else stain

    def process(
        self, jobs: Sequence[SlideJob], out: Path, *, overwrite: bool = False
    ) -> Iterator[SlideResult]:
        """Work through slides into stores ``out/<slide>.zarr``; give each result as it comes.

        Whatever is wrong with one slide becomes its reason; a full disk stops the run (Stopped).
        """
        taken: dict[Path, Path] = {}
        for job in jobs:
            started = time.perf_counter()
            try:
                result = self._one_slide(job, out, taken, overwrite=overwrite)
            except Exception as error:  # slide libraries and models raise whatever they like
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    text = f"{out}: {error.strerror}; put that right and run the same command again"
                    raise Stopped(text) from error
                yield SlideResult(job.slide, "failed", reason=reason(error))
            else:
                yield replace(result, seconds=time.perf_counter() - started)

    def outputs_of(self, tiles: Any) -> np.ndarray:
        """Return the model's output (B, D) of one batch of preprocessed tiles."""
        return self._get_model_attr("infer_batch")(self.model, tiles, device=self.device)[0]

    def prepare(self, preprocess: Callable) -> Prepare:
        """Return what makes of a tile, as read, the model's input and what is kept beside."""
        return Prepare(preprocess, self._tile_stain, colour=self.kind == "features")

    @property
    def _tile_stain(self) -> Stain | None:
        return None if isinstance(self.stain, SlideMacenko) else self.stain

    def _opened(self, job: SlideJob) -> "Opened":
        """Return a slide ready to be read."""
        reader = job.reader or open_slide(job.slide, job.mpp)
        if callable(job.mask):
            job = replace(job, mask=job.mask(reader))
        dataset, tissue = self._tiles_of(reader, job)
        preprocess, dataset.preproc_func = dataset.preproc_func, None  # `prepare` does that
        # Reading opens the slide for itself: threads must not share one position in one file.
        dataset.reader = None
        reading = TileReading(dataset, workers=max(1, self.num_workers))
        about = facts.slide_facts(job.slide, reader)
        return Opened(job, reader, dataset, tissue, preprocess, reading, about)

    def _one_slide(
        self, job: SlideJob, out: Path, taken: dict[Path, Path], *, overwrite: bool
    ) -> SlideResult:
        opened = self._opened(job)
        job, dataset = opened.job, opened.dataset
        work = Work(opened.reading, *self._compute_of(dataset, opened.preprocess))
        fingerprint = opened.facts["fingerprint"]
        path = job.part.store if job.part else store_path(out, job.slide, fingerprint, taken)
        overwrite = overwrite and job.part is None
        with kept_from_others(path, job.part):
            begun = None if overwrite else store.begun(path)
            chosen = work.choose_stain(self.stain, begun)
            chosen |= work.choose_precision(self.precision, begun, compiled=self.compiled)
            about = self._describe(opened, work.compute) | chosen
            with opening(path, job.part):
                group = self._open_store(
                    path, about, work, opened.tissue, job.part, overwrite=overwrite
                )
            missing = _missing(group, job.part)
            parts = () if job.part else self._parts(group, missing)
            if parts:
                return SlideResult(job.slide, "begun", path, len(dataset), parts=parts)
            timing = self._write_chunks(group, work, missing) if missing else None
            if job.part and job.part.chunks is not None:
                return SlideResult(job.slide, "begun", path, timing=timing)
            timing = added(job.part.timing, timing) if job.part else timing
            if timing:
                store.note_timing(group, timing.facts)
            note = _note(group)
        status = "done" if missing else "exists"
        speed = str(timing) if timing else ""
        return SlideResult(job.slide, status, path, len(dataset), note=note, speed=speed)

    def _compute_of(self, dataset: Any, preprocess: Callable) -> tuple[Compute, Prepare]:
        """Return the model ready for tiles of a slide, and what makes its input of them."""
        height, width = (int(side) for side in np.broadcast_to(dataset.patch_input_shape, 2))
        key = height, width, self.batch_size, str(self.device), id(self.model)
        if key not in self._computes:
            self._computes = {
                key: Compute(
                    self._bare_model(),
                    self.device,
                    batch_size=self.batch_size,
                    tile_shape=(height, width),
                    preprocess=preprocess,
                )
            }
        compute = self._computes[key]
        return compute, self.prepare(ModelABC.preproc if compute.takes_uint8 else preprocess)

    def _parts(self, group: Any, missing: list[int]) -> tuple[range, ...]:
        """Return the parts that several workers are to make of a slide, none of a small one."""
        most = max(1, (self.split or 0) // store.facts_of(group)["chunk_rows"])
        if self.split is None or len(missing) <= most:
            return ()
        parts = parts_of(missing, block=group["chunk_crc32"].chunks[0], most=most)
        return tuple(parts) if len(parts) > 1 else ()

    def _open_store(
        self,
        path: Path,
        about: dict,
        work: Work,
        tissue: np.ndarray,
        part: Part | None,
        *,
        overwrite: bool,
    ) -> Any:
        width, beside = work.first()
        return store.open_for_writing(
            path,
            about,
            work.reading.dataset.inputs,
            tissue,
            width=width,
            beside=beside,
            overwrite=overwrite,
            begun=part is not None,
        )

    def _tiles_of(self, reader: WSIReader, job: SlideJob) -> tuple[Any, np.ndarray]:
        """Return TIAToolbox's dataset of a slide's tiles, and the tissue fraction of each."""
        own_mask = job.mask is None and self.auto_mask
        if own_mask and not has_tissue(reader):
            raise TiaftError("no tissue found; --no-mask takes every tile")
        try:
            loader = self.get_dataloader(
                images=reader,
                masks=job.mask,  # an array will do, too
                patch_mode=False,
                ioconfig=self._ioconfig,
                auto_get_mask=own_mask,
            )
        except ValueError as error:
            if "No patch coordinates remain" in str(error):
                where = "the mask" if job.mask is not None else "the tissue"
                raise TiaftError(f"no tile lies in {where}") from error
            raise
        dataset: Any = loader.dataset
        _refuse_misfit(reader, dataset)
        _warn_of_enlarging(job.slide, facts.scale_to_baseline(reader, dataset))
        tissue = np.ones(len(dataset.inputs), dtype=np.float32)
        if dataset.mask_reader is not None:
            shape = reader.slide_dimensions(dataset.resolution, dataset.units)
            tissue = tissue_fractions(dataset.mask_reader.img, dataset.inputs, shape)
        enough = tissue >= self.min_tissue
        if not enough.any():
            raise TiaftError(f"no tile has {self.min_tissue:.0%} tissue")
        dataset.inputs = dataset.inputs[enough]
        return dataset, tissue[enough]

    def _write_chunks(self, group: Any, work: Work, missing: list[int]) -> Timing:
        """Write chunks; return where the time went."""
        size = store.facts_of(group)["chunk_rows"]
        kept = store.beside_of(store.facts_of(group))
        chunks = [range(len(work.reading.dataset))[store.chunk_slice(n, size)] for n in missing]
        made = work.batches(ChunkBatches(chunks, self.batch_size))
        title = store.facts_of(group)["slide"]["name"]
        with progress(sum(map(len, chunks)), title, wanted=self.verbose) as bar:
            for number, rows in zip(missing, chunks, strict=True):
                outputs: list[np.ndarray] = []
                beside: dict[str, list[np.ndarray]] = {name: [] for name in kept}
                for _ in range(0, len(rows), self.batch_size):
                    values, batch = next(made)
                    outputs.append(values)
                    for name in kept:
                        beside[name].append(batch[name])
                    bar.update(len(values))
                joined = {name: np.concatenate(parts) for name, parts in beside.items()}
                with work.writing():
                    store.write_chunk(group, number, np.concatenate(outputs), joined)
        return work.timing()

    def _describe(self, opened: "Opened", compute: Compute) -> dict[str, Any]:
        """Return the store's attributes (docs/formats.md)."""
        job, reader, dataset = opened.job, opened.reader, opened.dataset
        mask = facts.mask_facts(job.mask, self.auto_mask)
        settings = {
            "kind": self.kind,
            "slide": opened.facts,
            "model": self.model_facts,
            "classes": self._class_names(),
            "grid": facts.grid_facts(self._ioconfig, dataset, mask, self.min_tissue),
            "scale_to_baseline": facts.scale_to_baseline(reader, dataset),
            "precision": compute.precision,
            "stain_normalisation": getattr(self.stain, "facts", None),
            **self._task(),
        }
        return store.describe(
            settings,
            patient=job.patient,
            seed=None,  # nothing here is random
            batch_size=self.batch_size,
            threads=torch.get_num_threads(),
            device=str(self.device),
            versions=facts.versions(),
            compute={k: v for k, v in compute.facts.items() if k != "precision"},
        )

    @cached_property
    def model_facts(self) -> dict[str, str]:
        """The name and SHA-256 that stores know the model by."""
        model = self._bare_model()
        if isinstance(model, TileModel):
            return {"name": model.named.name, "sha256": model.sha256}
        return {"name": type(model).__name__, "sha256": sha256_of_weights(model)}

    def _bare_model(self) -> Any:
        """The model itself, where TIAToolbox has wrapped it for several GPUs."""
        return getattr(self.model, "module", self.model)

    def _class_names(self) -> list[str]:
        return []

    def _task(self) -> dict[str, str]:
        return {}

    def _get_model_attr(self, attr_name: str) -> Callable:
        found = super()._get_model_attr(attr_name)
        if isinstance(found, Normalise):
            return ModelABC.preproc  # `prepare` normalises, and notes where it cannot
        return _whole_batches(found) if attr_name == "infer_batch" else found

    def get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader:
        """Return TIAToolbox's loader; of tiles alone (patch mode), with stains normalised."""
        loader = super().get_dataloader(*args, **kwargs)
        if self.stain is not None and kwargs.get("patch_mode", True):
            if self._tile_stain is None:
                raise TiaftError("tiles alone have no slide to find stains of: scope='tile'")
            dataset: Any = loader.dataset
            dataset.preproc_func = Prepare(dataset.preproc_func, self._tile_stain).image
        return loader

    def _update_run_params(self, images: Any, **kwargs: Any) -> Path | None:
        self._overwrite = bool(kwargs.get("overwrite"))
        save_dir = kwargs.pop("save_dir", None)
        if kwargs["patch_mode"] or save_dir is None:
            return super()._update_run_params(images, save_dir=save_dir, **kwargs)
        # TIAToolbox refuses a folder that exists, or removes all of it: give it an empty one.
        empty = Path(save_dir) / f".{uuid.uuid4().hex}"
        super()._update_run_params(images, save_dir=empty, **{**kwargs, "overwrite": False})
        empty.rmdir()
        return Path(save_dir)

    def _run_wsi_mode(self, output_type: str, save_dir: Path, **kwargs: Any) -> dict:
        if output_type.lower() != "zarr":
            raise TiaftError(f"{type(self).__name__} writes stores (output_type='zarr') on slides")
        self.auto_mask = kwargs.get("auto_get_mask", True)
        mpp = (kwargs.get("wsireader_kwargs") or {}).get("mpp")
        jobs = [
            SlideJob(
                image.input_path if isinstance(image, WSIReader) else Path(image),
                None if self.masks is None else self.masks[number],
                None if mpp is None else float(np.ravel(mpp)[0]),
                reader=image if isinstance(image, WSIReader) else None,
            )
            for number, image in enumerate(self.images)
        ]
        results = list(self.process(jobs, save_dir, overwrite=self._overwrite))
        stores = {r.slide: r.store for r in results if r.status != "failed"}
        failures = {r.slide: r.reason for r in results if r.status == "failed"}
        if failures:
            raise SlidesFailed(stores, failures)
        return stores


class FeatureExtractor(StoreEngine, DeepFeatureExtractor):
    """TIAToolbox's DeepFeatureExtractor, with the same `run`, whose slides end in feature stores.

    `model` is a name, a TIAToolbox model, or a model file (``.safetensors``); `stain` normalises
    tiles (``tiaft_plugin.tiles.stain.Macenko()``), as does a model that was trained on normalised
    ones. `run` raises SlidesFailed, after all slides, where some failed.
    """

    kind, view = "features", "features"


class TilePredictor(StoreEngine):
    """TIAToolbox's PatchPredictor, with the same `run`, whose slides end in prediction stores.

    `model`, `stain` and errors as in FeatureExtractor.
    """

    kind, view = "predictions", "classes"

    def _class_names(self) -> list[str]:
        class_dict = self._bare_model().class_dict
        if not class_dict:
            raise TiaftError("the model names no classes: predictions need class names")
        names = [str(class_dict[number]) for number in sorted(class_dict)]
        return names[:-1] if self._task() else names  # the last one is "unclassified"

    def _task(self) -> dict[str, str]:
        several = getattr(self._bare_model(), "multilabel", False)
        return {"task": "multilabel"} if several else {}


@dataclass(frozen=True)
class Opened:
    """A slide that tiles can be read from: `dataset` is TIAToolbox's, `tissue` (N,) float32.

    `preprocess` is what TIAToolbox would call on each tile, `facts` what a store says of the slide.
    `job` has the mask itself, where it had a function that makes one.
    """

    job: SlideJob
    reader: WSIReader
    dataset: Any
    tissue: np.ndarray
    preprocess: Callable
    reading: TileReading
    facts: dict[str, Any]


def _refuse_misfit(reader: WSIReader, dataset: Any) -> None:
    """Raise TiaftError for tiles far larger than the slide, and for another slide's mask."""
    width, height = reader.slide_dimensions(dataset.resolution, dataset.units)
    if max(dataset.patch_input_shape) > 4 * max(width, height):
        raise TiaftError(
            f"a tile of {max(dataset.patch_input_shape)} px is far larger than the slide, which "
            f"has {width}×{height} px at this resolution (µm per px, not magnification)"
        )
    if dataset.mask_reader is None:
        return
    rows, columns = dataset.mask_reader.img.shape[:2]
    # Of what is rounded to whole mask pixels, half a pixel on each side is no misfit.
    expected = columns * height / width
    if abs(rows - expected) > 0.05 * expected + 1 + height / width:
        raise TiaftError(
            f"the mask, {columns}×{rows} px, has another shape than the slide ({width}×{height}): "
            "is it another slide's?"
        )


def _warn_of_enlarging(slide: Path, scale: Sequence[float]) -> None:
    """Warn where tiles have a finer resolution than the slide; of 2 % TIAToolbox warns, too."""
    if min(scale) < 1 / 1.02:
        logging.getLogger(__name__).warning(
            "%s is coarser than the tiles are to be: they are enlarged %.3g times",
            slide,
            1 / min(scale),
        )


def _missing(group: Any, part: Part | None) -> list[int]:
    """Return the chunks that are not written yet, of a part or of all."""
    chunks = range(group["chunk_crc32"].shape[0])
    if part is not None and part.chunks is not None:
        chunks = chunks[part.chunks.start : part.chunks.stop]
    return [number for number in chunks if not store.is_written(group, number)]


def _note(group: Any) -> str:
    if "normalised" not in store.beside_of(store.facts_of(group)):
        return ""
    normalised = np.asarray(group["normalised"][:])
    left = int((~normalised).sum())
    return f"{left} of {len(normalised)} tiles not stain-normalised" if left else ""


class ChunkBatches(Sampler[list[int]]):
    """Batches of rows that never reach over a chunk's end, so that any chunk can be made alone."""

    def __init__(self, chunks: Sequence[range], batch_size: int):
        self.batches = [
            list(rows[start : start + batch_size])
            for rows in chunks
            for start in range(0, len(rows), batch_size)
        ]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _whole_batches(infer_batch: Callable) -> Callable:
    """Let any TIAToolbox model serve: some return an array, some a list that holds one."""

    def infer(model: Any, batch_data: Any, *, device: str) -> np.ndarray:
        output = infer_batch(model, batch_data, device=device)
        if isinstance(output, list | tuple) and len(output) == 1:
            output = output[0]
        output = np.asarray(output)
        if output.ndim != 2 or len(output) != len(batch_data):
            raise TiaftError(
                f"the model gives an output of shape {output.shape} for {len(batch_data)} tiles"
            )
        return output.view(BatchOutput)

    return infer
