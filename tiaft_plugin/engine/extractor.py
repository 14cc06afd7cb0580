"""TIAToolbox's engines, writing tiaft's stores: every slide by itself, resumable, verifiable.

`FeatureExtractor` and `TilePredictor` are TIAToolbox's `DeepFeatureExtractor` and
`PatchPredictor` with the same `run`. On slides they differ in this: an existing folder is used
and nothing in it removed, a slide that fails does not stop the others, and an interrupted run
goes on where it stopped.
"""

import errno
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
from tiatoolbox.models.engine.patch_predictor import PatchPredictor
from tiatoolbox.wsicore.wsireader import WSIReader
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from tiaft_plugin.engine import slides as slide_files
from tiaft_plugin.engine import store
from tiaft_plugin.errors import SlidesFailed, TiaftError
from tiaft_plugin.files import sha256_of
from tiaft_plugin.zoo.models import BatchOutput, TileModel, model_from_file


@dataclass(frozen=True)
class SlideJob:
    """A slide to work on.

    `mask` is an image file, an (h, w) array, a function that makes one for an open slide, or None
    for TIAToolbox's own. `mpp` (µm/px at baseline) serves where the file has none; `patient` is
    noted in the store.
    """

    slide: Path
    mask: Path | np.ndarray | Callable[[WSIReader], np.ndarray] | None = None
    mpp: float | None = None
    patient: str | None = None
    reader: WSIReader | None = None  # where the slide is open already


@dataclass(frozen=True)
class SlideResult:
    """What became of a slide: `status` is "done", "exists" or "failed" (then with a reason)."""

    slide: Path
    status: str
    store: Path | None = None
    tiles: int = 0
    seconds: float = 0.0
    reason: str = ""


class StoreEngine(PatchPredictor):
    """What both engines share: `process`, and a `run` that ends in stores."""

    kind = ""  # of the store
    min_tissue = 0.0  # tiles with less tissue than this fraction are left out
    auto_mask = True

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        self._file_ioconfig = None
        if isinstance(model, str | Path) and Path(model).suffix == ".safetensors":
            model, self._file_ioconfig = model_from_file(Path(model), view=_VIEWS[self.kind])
        super().__init__(model, *args, **kwargs)
        if self._file_ioconfig is not None:
            self.ioconfig = self._ioconfig = self._file_ioconfig

    def process(
        self, jobs: Sequence[SlideJob], out: Path, *, overwrite: bool = False
    ) -> Iterator[SlideResult]:
        """Work through slides into stores ``out/<slide>.zarr``; give each result as it comes.

        Whatever is wrong with one slide becomes its reason; a full disk stops the run.
        """
        taken: dict[Path, Path] = {}
        for job in jobs:
            started = time.perf_counter()
            try:
                path, count, existed = self._one_slide(job, out, taken, overwrite=overwrite)
            except OSError as error:
                if error.errno in _DISK_ERRORS:
                    raise TiaftError(
                        f"{out}: {error.strerror}; free some and run it again"
                    ) from error
                yield SlideResult(job.slide, "failed", reason=slide_files.first_line(error))
            except Exception as error:  # slide libraries and models raise whatever they like
                yield SlideResult(job.slide, "failed", reason=slide_files.first_line(error))
            else:
                seconds = time.perf_counter() - started
                yield SlideResult(job.slide, "exists" if existed else "done", path, count, seconds)

    def _one_slide(
        self, job: SlideJob, out: Path, taken: dict[Path, Path], *, overwrite: bool
    ) -> tuple[Path, int, bool]:
        reader = job.reader or slide_files.open_slide(job.slide, job.mpp)
        if callable(job.mask):
            job = replace(job, mask=job.mask(reader))
        dataset, tissue = self._tiles_of(reader, job)
        facts = self._facts(job, reader, dataset)
        path = store_path(out, job.slide, facts["slide"]["fingerprint"], taken)
        width = self._output_width(dataset)
        group = store.open_for_writing(
            path, facts, dataset.inputs, tissue, width=width, overwrite=overwrite
        )
        missing = [
            number
            for number in range(group["chunk_crc32"].shape[0])
            if not store.is_written(group, number)
        ]
        self._write_chunks(group, dataset, missing, job.slide.name)
        return path, len(dataset), not missing

    def _tiles_of(self, reader: WSIReader, job: SlideJob) -> tuple[Any, np.ndarray]:
        """Return TIAToolbox's dataset of a slide's tiles, and the tissue fraction of each."""
        own_mask = job.mask is None and self.auto_mask
        if own_mask and not slide_files.has_tissue(reader):
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
        if dataset.mask_reader is None:
            tissue = np.ones(len(dataset.inputs), dtype=np.float32)
        else:
            shape = reader.slide_dimensions(dataset.resolution, dataset.units)
            tissue = slide_files.tissue_fractions(dataset.mask_reader.img, dataset.inputs, shape)
        enough = tissue >= self.min_tissue
        if not enough.any():
            raise TiaftError(f"no tile has {self.min_tissue:.0%} tissue")
        dataset.inputs = dataset.inputs[enough]
        return dataset, tissue[enough]

    def _write_chunks(self, group: Any, dataset: Any, missing: list[int], name: str) -> None:
        chunks = [_rows(number, len(dataset)) for number in missing]
        loader = DataLoader(
            dataset,
            batch_sampler=ChunkBatches(chunks, self.batch_size),
            num_workers=self.num_workers,
        )
        infer = self._get_model_attr("infer_batch")
        bar = tqdm(
            total=sum(len(rows) for rows in chunks),
            desc=name,
            unit="tile",
            disable=not self.verbose,
        )
        batches = iter(loader)
        with bar:
            for number, rows in zip(missing, chunks, strict=True):
                outputs: list[np.ndarray] = []
                for _ in range(-(-len(rows) // self.batch_size)):
                    tiles = next(batches)["image"]
                    outputs.append(infer(self.model, tiles, device=self.device)[0])
                    bar.update(len(tiles))
                store.write_chunk(group, number, np.concatenate(outputs))

    def _output_width(self, dataset: Any) -> int:
        tile = torch.as_tensor(np.asarray(dataset[0]["image"]))[None]
        infer = self._get_model_attr("infer_batch")
        return int(infer(self.model, tile, device=self.device)[0].shape[1])

    def _facts(self, job: SlideJob, reader: WSIReader, dataset: Any) -> dict[str, Any]:
        """Return the store's attributes (docs/formats.md)."""
        mpp = slide_files.slide_mpp(reader)
        config: Any = self._ioconfig
        resolution, units = dataset.resolution, dataset.units
        read_size = reader.slide_dimensions(resolution, units)
        size = reader.info.slide_dimensions
        if units == "mpp":
            scale = [
                float(value) / own
                for value, own in zip(np.broadcast_to(resolution, 2), mpp, strict=True)
            ]
        else:
            scale = [float(full) / float(read) for full, read in zip(size, read_size, strict=True)]
        settings = {
            "kind": self.kind,
            "slide": {
                "name": job.slide.name,
                "fingerprint": slide_files.fingerprint(job.slide),
                "size": [int(value) for value in size],
                "mpp": list(mpp),
            },
            "model": self._model_facts(),
            "classes": self._class_names(),
            "grid": {
                "tile_size": _pair(config.patch_input_shape),
                "stride": _pair(config.stride_shape),
                "resolution": float(np.ravel(resolution)[0]),
                "units": units,
                "mask": self._mask_facts(job.mask),
                "min_tissue": self.min_tissue,
            },
            "scale_to_baseline": scale,
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
            versions={
                name: version(name) for name in ("tiaft_plugin", "tiatoolbox", "torch", "timm")
            },
        )

    def _model_facts(self) -> dict[str, str]:
        model = self._bare_model()
        if isinstance(model, TileModel):
            return {"name": model.named.name, "sha256": model.sha256}
        return {"name": type(model).__name__, "sha256": _sha256_of_weights(model)}

    def _bare_model(self) -> Any:
        """The model itself, where TIAToolbox has wrapped it for several GPUs."""
        return getattr(self.model, "module", self.model)

    def _class_names(self) -> list[str]:
        return []

    def _mask_facts(self, mask: Any) -> str:
        if mask is None:
            return "otsu" if self.auto_mask else "none"
        return f"sha256:{_sha256_of_mask(mask)}"

    # TIAToolbox's own methods from here on.

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

    `model` is a name, a TIAToolbox model, or a model file (``.safetensors``).
    """

    kind = "features"


class TilePredictor(StoreEngine):
    """TIAToolbox's PatchPredictor, with the same `run`, whose slides end in prediction stores."""

    kind = "predictions"

    def _class_names(self) -> list[str]:
        class_dict = self._bare_model().class_dict
        if not class_dict:
            raise TiaftError("the model names no classes: predictions need class names")
        return [str(class_dict[number]) for number in sorted(class_dict)]


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


def store_path(out: Path, slide: Path, fingerprint: str, taken: dict[Path, Path]) -> Path:
    """Return the store of a slide: ``<stem>.zarr``, or with its fingerprint if that is taken.

    `taken` maps the stores of this run to their slides, and is added to. Two slides of one name
    never share a store, in whatever order and however many runs they come.
    """
    names = [slide.stem, f"{slide.stem}-{fingerprint[:8]}"]
    names += [f"{names[1]}-{number}" for number in range(2, len(taken) + 3)]  # copies of one slide
    for name in names:
        path = out / f"{name}.zarr"
        if taken.get(path, slide) == slide and _is_of(path, fingerprint):
            taken[path] = slide
            return path
    raise AssertionError("one of len(taken) + 2 names is free")


def _is_of(path: Path, fingerprint: str) -> bool:
    """Whether a store is this slide's, or not there; what is no store counts as its own."""
    if not path.exists():
        return True
    try:
        found = store.facts_of(store.open_any(path))
    except TiaftError:
        return True  # open_for_writing then says what is in the way
    return found["slide"]["fingerprint"] == fingerprint


def _rows(number: int, count: int) -> range:
    return range(*store.chunk_slice(number, store.CHUNK_ROWS).indices(count))


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


def _sha256_of_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sha256_of_mask(mask: Any) -> str:
    if isinstance(mask, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(mask).tobytes()).hexdigest()
    return sha256_of(mask)


def _pair(shape: Any) -> list[int]:
    return [int(value) for value in np.broadcast_to(np.asarray(shape), 2)]


_VIEWS = {"features": "features", "predictions": "classes"}
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
