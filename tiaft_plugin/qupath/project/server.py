"""How an image of a QuPath project is made from its file: cropped, rotated, or otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ROTATIONS = {"ROTATE_NONE": 0, "ROTATE_90": 90, "ROTATE_180": 180, "ROTATE_270": 270}
# Builders around another one whose pixels lie where the other's do.
IN_PLACE = frozenset(
    {
        "channels", "color", "color_deconvolved", "normalized", "pyramidize", "sliced",
        "swapRedBlue", "typeConvert", "z_concatenated", "z_projected",
    }
)  # fmt: skip
_MICRONS = ("µm", "μm", "um")  # the micro sign, as QuPath writes it, and the Greek letter

Size = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Server:
    """What a ``serverBuilder`` of a project says of its image.

    `size` (width, height) and `mpp` (µm/px, x and y) are those of the image as QuPath shows it.
    `crop` (x, y, width, height) is what it shows of the file's own image, in pixels of that,
    and `rotation` (degrees clockwise) how it is turned after; `base_size` is the size of the
    file's own image. `odd` names what moves the pixels in yet another way, empty if nothing does.
    """

    kind: str = ""
    uris: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    size: Size | None = None
    mpp: tuple[float, float] | None = None
    rotation: int = 0
    crop: Box | None = None
    odd: str = ""
    base_size: Size | None = None


def read_server(builder: Any) -> Server:
    """Return what a server builder's JSON says; whatever it lacks is empty or None."""
    chain = list(_chain(builder))
    if not chain:
        return Server(odd="no image")
    base = chain[-1]
    placed = _Placed(_size(base))
    for layer in reversed(chain[:-1]):
        placed.apply(layer)
    odd = placed.odd or _odd_base(base)
    size = _size(chain[0]) or placed.size
    return Server(
        _text(chain[0].get("builderType")),
        tuple(dict.fromkeys(_uris(builder))),
        tuple(_text(arg) for arg in _list(base.get("args"))),
        size,
        _mpp(chain),
        placed.rotation,
        placed.crop,
        odd,
        _size(base),
    )


class _Placed:
    """Follows crops and turns from a file's image outwards."""

    def __init__(self, size: Size | None):
        self.size = size
        self.rotation = 0
        self.crop: Box | None = None
        self.odd = ""

    def apply(self, layer: dict) -> None:
        kind = _text(layer.get("builderType"))
        if kind == "rotated" and (name := _text(layer.get("rotation"))) in ROTATIONS:
            turn = ROTATIONS[name]
            self.rotation = (self.rotation + turn) % 360
            if turn % 180 and self.size:
                self.size = self.size[::-1]
        elif kind == "cropped" and (region := _region(layer.get("region"))):
            self._cut(region)
        elif kind not in IN_PLACE:
            self.odd = self.odd or kind or "unknown"
            self.size = _size(layer)

    def _cut(self, region: Box) -> None:
        """Crop what is turned already: the same crop of the image before it was turned."""
        x, y, width, height = region
        if self.rotation and not self.size:
            self.odd = self.odd or "cropped"
            return
        across, down = self.size or (0, 0)
        box = {
            0: (x, y, width, height),
            90: (y, across - x - width, height, width),
            180: (across - x - width, down - y - height, width, height),
            270: (down - y - height, x, height, width),
        }[self.rotation]
        left, top = self.crop[:2] if self.crop else (0, 0)
        self.crop = (left + box[0], top + box[1], box[2], box[3])
        self.size = (width, height)


def _chain(builder: Any) -> Iterator[dict]:
    """Yield the builders from the outermost to the one that opens a file."""
    while isinstance(builder, dict):
        yield builder
        inner = builder.get("builder")
        if inner is None and builder.get("builderType") == "z_concatenated":
            inner = next(iter(_list(builder.get("builders"))), None)
        builder = inner


def _uris(builder: Any) -> Iterator[str]:
    """Yield each builder's URI, the one that gives the image its place first."""
    waiting = [builder]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, dict):
            if isinstance(thing.get("uri"), str):
                yield thing["uri"]
            names = ("resolutions", "regions", "builders", "channels", "serverBuilder", "builder")
            waiting.extend(thing[name] for name in names if name in thing)
        elif isinstance(thing, list):
            waiting.extend(reversed(thing))


def _odd_base(base: dict) -> str:
    kind = _text(base.get("builderType"))
    if kind != "uri":
        return kind or "unknown"
    # QuPath applies it where no reader is named, and leaves it to the reader otherwise.
    return "uri with --rotate" if "--rotate" in _list(base.get("args")) else ""


def _size(builder: dict) -> Size | None:
    return size_in(builder.get("metadata"))


def size_in(facts: Any) -> Size | None:
    """Return the width and height (pixels) in an object of QuPath's, or None."""
    if not isinstance(facts, dict):
        return None
    width, height = _integer(facts.get("width")), _integer(facts.get("height"))
    return (width, height) if width and height and width > 0 and height > 0 else None


def _region(region: Any) -> Box | None:
    size = size_in(region)
    x, y = (_integer(region.get(name)) for name in "xy") if size else (None, None)
    return None if size is None or x is None or y is None else (x, y, *size)


def _mpp(chain: list[dict]) -> tuple[float, float] | None:
    turned = False
    for builder in chain:
        metadata = builder.get("metadata")
        if isinstance(metadata, dict):
            calibration = metadata.get("pixelCalibration")
            x, y = (_microns(calibration, side) for side in ("pixelWidth", "pixelHeight"))
            if x is None or y is None:
                return None
            return (y, x) if turned else (x, y)
        turned ^= builder.get("rotation") in ("ROTATE_90", "ROTATE_270")
    return None


def _microns(calibration: Any, side: str) -> float | None:
    length = calibration.get(side) if isinstance(calibration, dict) else None
    if not isinstance(length, dict) or length.get("unit") not in _MICRONS:
        return None
    value = length.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value < 1e6 else None


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if abs(value) < 2**31 and value == int(value) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _list(value: Any) -> list:
    return value if isinstance(value, list) else []
