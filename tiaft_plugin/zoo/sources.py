"""Where model files come from: this machine, Hugging Face, or an https address with its hash."""

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import sha256_of

_TIMEOUT = 60  # seconds without an answer


@contextmanager
def fetched(source: str, sha256: str | None = None) -> Iterator[Path]:
    """Give the local path of a source for as long as the block runs; check its hash if given.

    Raises TiaftError for what cannot be had and for a wrong hash.
    """
    with tempfile.TemporaryDirectory(prefix="tiaft-") as folder:
        if source.startswith("hf://"):
            path = _from_hugging_face(source)
        elif source.startswith("https://"):
            if not sha256:
                raise TiaftError(f"{source}: an address needs --sha256, the hash of what you mean")
            path = _download(source, Path(folder) / "model.safetensors")
        elif "://" in source:
            raise TiaftError(f"{source}: only files, hf:// and https:// sources are read")
        else:
            path = Path(source).expanduser()
            if not path.is_file():
                raise TiaftError(f"{source}: no such model file")
        if sha256:
            found = sha256_of(path)
            if found != sha256.lower():
                raise TiaftError(f"{source} has SHA-256 {found}, not {sha256}: it is not used")
        yield path


def _from_hugging_face(source: str) -> Path:
    address, _, revision = source.removeprefix("hf://").partition("@")
    parts = address.split("/", 2)
    if len(parts) < 3 or not all(parts) or not revision:
        raise TiaftError(
            f"{source}: write hf://owner/repo/file@revision (a commit, tag or branch: what a "
            "branch means changes, a commit stays)"
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2], revision=revision))
    except Exception as error:  # the hub's errors, and httpx' own where nothing answers
        raise TiaftError(f"{source} cannot be had: {first_line(error)}") from error


def _download(address: str, path: Path) -> Path:
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
            total = int(answer.headers.get("Content-Length") or 0) or None
            bar = tqdm.wrapattr(answer, "read", total=total, desc="download", leave=False)
            with bar as stream, path.open("wb") as file:
                shutil.copyfileobj(stream, file)
    except (OSError, ValueError) as error:  # URLError is an OSError
        raise TiaftError(f"{address} cannot be had: {first_line(error)}") from error
    return path
