"""What tiaft needs of a computer, looked at part by part: one small function each."""

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

MIN_PYTHON = (3, 11)
MIN_FREE_GB = 5  # a slide's features take some MB; downloaded weights and checkpoints take GB
REINSTALL = "pip install --force-reinstall {}"


@dataclass(frozen=True)
class Check:
    """What was found: `status` is PASS, WARN (works, with limits) or FAIL (does not work)."""

    name: str
    status: str
    text: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """Make all checks, yielding each when it is done. Nothing is changed, no JVM is started."""
    for name, check in CHECKS.items():
        try:
            result = check()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a broken library may raise anything, SystemExit too
            remedy = REINSTALL.format(PACKAGES[name]) if name in PACKAGES else ""
            result = Check(name, "FAIL", _brief(error), remedy)
        yield result


def python() -> Check:
    """Python's own version."""
    text = f"{platform.python_version()} on {platform.platform(terse=True)} ({sys.executable})"
    if sys.version_info < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        return Check("Python", "FAIL", text, f"install Python {wanted} or newer")
    return Check("Python", "PASS", text)


def requirements() -> Check:
    """Whether each required distribution is there, in a version that will do."""
    from packaging.requirements import Requirement

    from tiaft_plugin import __version__

    missing, count = [], 0
    for requirement in map(Requirement, requires("tiaft_plugin") or []):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            missing.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            missing.append(f"{requirement.name} is {found}, {requirement.specifier} is needed")
    if missing:
        return Check(
            "Requirements", "FAIL", "; ".join(missing), "pip install --upgrade tiaft_plugin"
        )
    return Check("Requirements", "PASS", f"tiaft_plugin {__version__}: all {count} are installed")


def plug_ins() -> Check:
    """Whether every plug-in loads and registers what it says."""
    from tiaft_plugin.plugins import describe

    infos = describe()
    faults = [info for info in infos if info.error and not info.error.startswith("blocked")]
    if faults:
        names = ",".join(info.name for info in faults)
        text = "; ".join(f"{info.name} ({info.source}): {info.error}" for info in faults)
        return Check("Plug-ins", "FAIL", text, f"mend them, or set TIAFT_DISABLE_PLUGINS={names}")
    return Check("Plug-ins", "PASS", ", ".join(info.name for info in infos))


def torch_cpu() -> Check:
    """Whether torch computes, with how many threads, and how well this processor does bfloat16."""
    import torch

    if float(torch.ones(2, 2).mm(torch.ones(2, 2)).sum()) != 8:
        return Check("torch", "FAIL", "computes wrongly", REINSTALL.format("torch torchvision"))
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() or _arm_bfloat16()
    text = (
        f"{torch.__version__}, {torch.get_num_threads()} CPU threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, "
        f"bfloat16 instructions: {'yes' if fast else 'no (float32 is as fast)'}"
    )
    return Check("torch", "PASS", text)


def gpu() -> Check:
    """Whether a graphics processor is there, and torch can compute on it."""
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        for index in range(count):  # a card too new or too old for this torch fails only here
            torch.ones(1, device=f"cuda:{index}").sum().item()
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        name = torch.cuda.get_device_name(0)
        return Check("GPU", "PASS", f"{count} × {name}, {memory:.0f} GB, CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        torch.ones(1, device="mps").sum().item()
        return Check("GPU", "PASS", "Apple GPU (mps)")
    if shutil.which("nvidia-smi"):
        built = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch for CPUs"
        return Check(
            "GPU",
            "WARN",
            f"there is an NVIDIA driver, but {built} cannot use it",
            "install the torch that fits the driver: https://pytorch.org/get-started/locally",
        )
    remedy = "everything works without one; fine-tuning and large slides take long"
    return Check("GPU", "WARN", "none", remedy)


def torchvision() -> Check:
    """Whether torchvision was built for this torch: its compiled operators say so."""
    import torch
    import torchvision

    text = f"{torchvision.__version__} with torch {torch.__version__}"
    try:
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    except (RuntimeError, AttributeError) as error:
        text += f" do not fit each other: {_brief(error)}"
        return Check("torchvision", "FAIL", text, REINSTALL.format("torch torchvision"))
    return Check("torchvision", "PASS", text)


def tiatoolbox() -> Check:
    """TIAToolbox's version, and whether its slide readers can be imported."""
    import tiatoolbox

    found = tuple(int(part) for part in re.findall(r"\d+", tiatoolbox.__version__)[:2])
    if found < (2, 1):
        text = f"{tiatoolbox.__version__} is too old"
        return Check("TIAToolbox", "FAIL", text, "pip install --upgrade 'tiatoolbox>=2.1'")
    import_module("tiatoolbox.wsicore.wsireader")  # where OpenCV's missing libraries show
    return Check("TIAToolbox", "PASS", tiatoolbox.__version__)


def model_names() -> Check:
    """Whether TIAToolbox's engines learn our names, as its version is."""
    from tiaft_plugin.zoo.registry import open_doors

    closed = open_doors()
    if closed:
        remedy = "install the version of TIAToolbox that this tiaft_plugin's changelog names"
        return Check("Names", "FAIL", "; ".join(closed), remedy)
    return Check("Names", "PASS", "TIAToolbox's engines know tiaft's model names")


def timm() -> Check:
    """timm's version, and whether it has the paper's backbone."""
    import timm

    if not timm.is_model("legacy_xception"):
        text = f"{timm.__version__} has no legacy_xception, the default backbone"
        return Check("timm", "FAIL", text, "pip install --upgrade timm")
    return Check("timm", "PASS", f"{timm.__version__}, {len(timm.list_models())} backbones")


def lightning() -> Check:
    """Whether Lightning, which fine-tuning stands on, can be imported."""
    import lightning.pytorch

    return Check("Lightning", "PASS", lightning.pytorch.__version__)


def openslide() -> Check:
    """Whether OpenSlide opens a tiled TIFF written a moment ago."""
    import numpy as np
    import openslide
    import tifffile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "slide.tif")
        pixels = np.full((256, 256, 3), 200, np.uint8)
        tifffile.imwrite(path, pixels, tile=(128, 128), compression="jpeg", photometric="rgb")
        with openslide.OpenSlide(path) as slide:
            found = np.asarray(slide.read_region((64, 64), 0, (8, 8)))[..., :3]
    text = f"{openslide.__library_version__} (openslide-python {openslide.__version__})"
    if abs(found.astype(int) - 200).max() > 4:  # JPEG keeps a plain colour nearly as it was
        return Check("OpenSlide", "FAIL", f"{text} reads wrong pixels", _OPENSLIDE_REMEDY)
    return Check("OpenSlide", "PASS", f"{text} reads a tiled JPEG TIFF")


def codecs() -> Check:
    """Whether imagecodecs decodes what slides are compressed with."""
    import imagecodecs
    import numpy as np
    import tifffile

    pixels = np.zeros((32, 32, 3), np.uint8)
    for codec in ("jpeg", "jpeg2k", "lzw", "deflate"):
        encode = getattr(imagecodecs, f"{codec}_encode")
        decode = getattr(imagecodecs, f"{codec}_decode")
        decode(encode(pixels.tobytes() if codec in ("lzw", "deflate") else pixels))
    text = f"imagecodecs {imagecodecs.__version__}, tifffile {tifffile.__version__}: "
    return Check("Codecs", "PASS", text + "JPEG, JPEG 2000, LZW, Deflate")


def jpeg2000() -> Check:
    """Whether glymur, through which TIAToolbox reads .jp2, finds the OpenJPEG library."""
    import glymur

    found = glymur.version.openjpeg_version
    if found in ("", "0.0.0"):
        remedy = "only .jp2 slides need it: install OpenJPEG (Debian: libopenjp2-7)"
        return Check("OpenJPEG", "WARN", "glymur finds no OpenJPEG library", remedy)
    return Check("OpenJPEG", "PASS", f"{found} (glymur {glymur.__version__}) for .jp2 slides")


def zarr() -> Check:
    """zarr's version, and whether it writes and reads."""
    import numpy as np
    import zarr

    if int(zarr.__version__.split(".")[0]) < 3:
        text = f"{zarr.__version__} is too old"
        return Check("zarr", "FAIL", text, "pip install --upgrade 'zarr>=3'")
    with tempfile.TemporaryDirectory() as folder:
        array = zarr.create_array(folder, shape=(4,), dtype="int64", chunks=(2,))
        array[:] = np.arange(4)
        if np.asarray(zarr.open_array(folder, mode="r")).tolist() != [0, 1, 2, 3]:
            return Check("zarr", "FAIL", "reads other numbers than it wrote")
    return Check("zarr", "PASS", zarr.__version__)


def sqlite() -> Check:
    """Whether TIAToolbox's own code can open annotation stores (tiaft's sink does so anywhere)."""
    import sqlite3

    text = f"SQLite {sqlite3.sqlite_version}"
    if not hasattr(sqlite3.Connection, "enable_load_extension"):
        text += ": this Python's sqlite3 loads no extensions, so TIAToolbox opens no .db"
        remedy = "predictions are written all the same; to open .db, use conda's or python.org's"
        return Check("SQLite", "WARN", text, remedy)
    return Check("SQLite", "PASS", text)


def java() -> Check:
    """The version of Java on the PATH, told by a process of its own."""
    remedy = "QuPath brings its own Java; another one is needed only without QuPath"
    command = shutil.which("java")
    if command is None:
        return Check("Java", "WARN", "none on the PATH", remedy)
    compiler = "with javac" if shutil.which("javac") else "without javac"
    done = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30)
    said = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
    if done.returncode != 0:
        return Check("Java", "WARN", f"{command} does not run: {said[0]}", remedy)
    return Check("Java", "PASS", f"{said[0]}, {compiler} ({command})")


def qupath() -> Check:
    """Whether paquo is installed and finds a QuPath; no JVM is started."""
    try:
        found = version("paquo")
    except PackageNotFoundError:
        remedy = "pip install 'tiaft_plugin[qupath]' (GeoJSON files for QuPath need neither)"
        return Check("QuPath", "WARN", "paquo is not installed: no QuPath projects", remedy)
    from paquo._config import settings, to_kwargs
    from paquo.jpype_backend import find_qupath

    options = to_kwargs(settings)
    remedy = (
        "install QuPath and set PAQUO_QUPATH_DIR to its folder, or run "
        "`paquo get_qupath --install-path DIR 0.6.0` (GeoJSON files for QuPath need neither)"
    )
    try:
        app = find_qupath(**options).app_dir
    except (ValueError, OSError) as error:
        asked = options.get("qupath_dir")
        text = f"paquo {found} finds no QuPath" + (f" in {asked}" if asked else "")
        return Check("QuPath", "WARN", f"{text}: {_brief(error)}", remedy)
    jars = sorted(path.name for path in app.glob("qupath-app-*.jar"))
    named = jars[0].removeprefix("qupath-app-").removesuffix(".jar") if jars else "?"
    return Check("QuPath", "PASS", f"QuPath {named} in {app}, paquo {found}")


def model_folder() -> Check:
    """Whether the user's model folder can be written, and each model file in it be read."""
    from tiaft_plugin.errors import TiaftError
    from tiaft_plugin.network.card import read_card
    from tiaft_plugin.zoo.folder import file_of, model_folder, names

    folder = model_folder()
    place = _nearest(folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "Models", "FAIL", f"{folder} cannot be written", "set TIAFT_MODELS to another folder"
        )
    files, faults = [file_of(name) for name in names()], []
    for file in files:
        try:
            read_card(file)
        except TiaftError as error:
            faults.append(str(error))
    if faults:
        return Check("Models", "WARN", "; ".join(faults), "remove these files, or add them again")
    if not files:
        remedy = "`tiaft finetune … --register NAME` or `tiaft models add NAME SOURCE` adds some"
        return Check("Models", "WARN", f"no model files in {folder}", remedy)
    return Check("Models", "PASS", f"{', '.join(file.stem for file in files)} in {folder}")


def disk() -> Check:
    """The space left where the models are kept."""
    from tiaft_plugin.zoo.folder import model_folder

    place = _nearest(model_folder())
    free = shutil.disk_usage(place).free / 1e9
    text = f"{free:.1f} GB free at {place}"
    if free < MIN_FREE_GB:
        remedy = f"make room: weights and stores want {MIN_FREE_GB} GB; TIAFT_MODELS moves models"
        return Check("Disk", "WARN", text, remedy)
    return Check("Disk", "PASS", text)


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": python,
    "Requirements": requirements,
    "torch": torch_cpu,
    "GPU": gpu,
    "torchvision": torchvision,
    "TIAToolbox": tiatoolbox,
    "Names": model_names,
    "timm": timm,
    "Lightning": lightning,
    "OpenSlide": openslide,
    "Codecs": codecs,
    "OpenJPEG": jpeg2000,
    "zarr": zarr,
    "SQLite": sqlite,
    "Plug-ins": plug_ins,
    "Java": java,
    "QuPath": qupath,
    "Models": model_folder,
    "Disk": disk,
}

# What to install again where a check breaks off.
PACKAGES = {
    "Requirements": "packaging",
    "torch": "torch torchvision",
    "GPU": "torch torchvision",
    "torchvision": "torch torchvision",
    "TIAToolbox": "tiatoolbox",
    "timm": "timm",
    "Lightning": "lightning",
    "OpenSlide": "openslide-python openslide-bin tifffile imagecodecs",
    "Codecs": "imagecodecs tifffile",
    "OpenJPEG": "glymur",
    "zarr": "zarr",
    "QuPath": "paquo",
}
_OPENSLIDE_REMEDY = REINSTALL.format(PACKAGES["OpenSlide"])


def _brief(error: BaseException) -> str:
    """Return an error as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _nearest(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _arm_bfloat16() -> bool:
    """Whether an ARM processor under Linux names bfloat16 among its features."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.is_file() and bool(re.search(r"\bbf16\b", cpuinfo.read_text(errors="replace")))
