"""TIAToolbox's engines, writing tiaft's stores: every slide by itself, resumable, verifiable.

`FeatureExtractor` and `TilePredictor` are TIAToolbox's `DeepFeatureExtractor` and
`PatchPredictor` with the same `run`. On slides they differ in this: an existing folder is used
and nothing in it removed, a slide that fails does not stop the others, and an interrupted run
goes on where it stopped.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.wsicore.wsireader import WSIReader
from torch.utils.data import DataLoader, Sampler

from tiaft_plugin.engine import facts, store
from tiaft_plugin.engine.jobs import SlideJob, SlideResult
from tiaft_plugin.engine.naming import store_path
from tiaft_plugin.engine.slides import has_tissue, open_slide, tissue_fractions
from tiaft_plugin.errors import SlidesFailed, Stopped, TiaftError, reason
from tiaft_plugin.files import DISK_ERRORS, locked
from tiaft_plugin.network.weights import sha256_of_weights
from tiaft_plugin.progress import progress
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

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        ioconfig = None
        if isinstance(model, str | Path) and Path(model).suffix == ".safetensors":
            model, ioconfig = model_from_file(Path(model), view=self.view)
        super().__init__(model, *args, **kwargs)
        if ioconfig is not None:
            self.ioconfig = self._ioconfig = ioconfig

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
                path, count, existed = self._one_slide(job, out, taken, overwrite=overwrite)
            except Exception as error:  # slide libraries and models raise whatever they like
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    text = f"{out}: {error.strerror}; put that right and run the same command again"
                    raise Stopped(text) from error
                yield SlideResult(job.slide, "failed", reason=reason(error))
            else:
                seconds = time.perf_counter() - started
                yield SlideResult(job.slide, "exists" if existed else "done", path, count, seconds)

    def _one_slide(
        self, job: SlideJob, out: Path, taken: dict[Path, Path], *, overwrite: bool
    ) -> tuple[Path, int, bool]:
        """Return the store, its number of tiles, and whether it was complete before."""
        reader = job.reader or open_slide(job.slide, job.mpp)
        if callable(job.mask):
            job = replace(job, mask=job.mask(reader))
        dataset, tissue = self._tiles_of(reader, job)
        about = self._describe(job, reader, dataset)
        path = store_path(out, job.slide, about["slide"]["fingerprint"], taken)
        with locked(path, wait=False):
            group = store.open_for_writing(
                path,
                about,
                dataset.inputs,
                tissue,
                width=self._output_width(dataset),
                overwrite=overwrite,
            )
            chunks = range(group["chunk_crc32"].shape[0])
            missing = [number for number in chunks if not store.is_written(group, number)]
            if missing:
                self._write_chunks(group, dataset, missing, job.slide.name)
        return path, len(dataset), not missing

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
        tissue = np.ones(len(dataset.inputs), dtype=np.float32)
        if dataset.mask_reader is not None:
            shape = reader.slide_dimensions(dataset.resolution, dataset.units)
            tissue = tissue_fractions(dataset.mask_reader.img, dataset.inputs, shape)
        enough = tissue >= self.min_tissue
        if not enough.any():
            raise TiaftError(f"no tile has {self.min_tissue:.0%} tissue")
        dataset.inputs = dataset.inputs[enough]
        return dataset, tissue[enough]

    def _write_chunks(self, group: Any, dataset: Any, missing: list[int], name: str) -> None:
        size = store.facts_of(group)["chunk_rows"]
        chunks = [range(len(dataset))[store.chunk_slice(number, size)] for number in missing]
        batches = ChunkBatches(chunks, self.batch_size)
        loader = iter(DataLoader(dataset, batch_sampler=batches, num_workers=self.num_workers))
        infer = self._get_model_attr("infer_batch")
        total = sum(map(len, chunks))
        with progress(total, name, wanted=self.verbose) as bar:
            for number, rows in zip(missing, chunks, strict=True):
                outputs: list[np.ndarray] = []
                for _ in range(0, len(rows), self.batch_size):
                    tiles = next(loader)["image"]
                    outputs.append(infer(self.model, tiles, device=self.device)[0])
                    bar.update(len(tiles))
                store.write_chunk(group, number, np.concatenate(outputs))

    def _output_width(self, dataset: Any) -> int:
        tile = torch.as_tensor(np.asarray(dataset[0]["image"]))[None]
        infer = self._get_model_attr("infer_batch")
        return int(infer(self.model, tile, device=self.device)[0].shape[1])

    def _describe(self, job: SlideJob, reader: WSIReader, dataset: Any) -> dict[str, Any]:
        """Return the store's attributes (docs/formats.md)."""
        mask = facts.mask_facts(job.mask, self.auto_mask)
        settings = {
            "kind": self.kind,
            "slide": facts.slide_facts(job.slide, reader),
            "model": self._model_facts,
            "classes": self._class_names(),
            "grid": facts.grid_facts(self._ioconfig, dataset, mask, self.min_tissue),
            "scale_to_baseline": facts.scale_to_baseline(reader, dataset),
            "precision": "float32",
            "stain_normalisation": None,
        }
        return store.describe(
            settings,
            patient=job.patient,
            seed=None,  # nothing here is random
            batch_size=self.batch_size,
            threads=torch.get_num_threads(),
            device=str(self.device),
            versions=facts.versions(),
        )

    @cached_property
    def _model_facts(self) -> dict[str, str]:
        model = self._bare_model()
        if isinstance(model, TileModel):
            return {"name": model.named.name, "sha256": model.sha256}
        return {"name": type(model).__name__, "sha256": sha256_of_weights(model)}

    def _bare_model(self) -> Any:
        """The model itself, where TIAToolbox has wrapped it for several GPUs."""
        return getattr(self.model, "module", self.model)

    def _class_names(self) -> list[str]:
        return []

    def _get_model_attr(self, attr_name: str) -> Callable:
        found = super()._get_model_attr(attr_name)
        return _whole_batches(found) if attr_name == "infer_batch" else found

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

    `model` is a name, a TIAToolbox model, or a model file (``.safetensors``). `run` raises
    SlidesFailed, after all slides, where some failed.
    """

    kind, view = "features", "features"


class TilePredictor(StoreEngine):
    """TIAToolbox's PatchPredictor, with the same `run`, whose slides end in prediction stores.

    `model` and errors as in FeatureExtractor.
    """

    kind, view = "predictions", "classes"

    def _class_names(self) -> list[str]:
        class_dict = self._bare_model().class_dict
        if not class_dict:
            raise TiaftError("the model names no classes: predictions need class names")
        return [str(class_dict[number]) for number in sorted(class_dict)]


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
