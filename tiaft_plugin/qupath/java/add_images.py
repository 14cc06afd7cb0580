"""Slides as images of a QuPath project, as QuPath itself describes them, and empty projects.

QuPath writes a project in place, file after file. So what it makes is made in a folder of its own
and moved into the project when it is whole.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.files import write_folder_atomically
from tiaft_plugin.qupath.java.start import java_errors, load_openslide, start_java
from tiaft_plugin.qupath.project.exact_json import edited_json, read_json

_NAME = "project.qpproj"
_WHAT = "QuPath project"


def make_entries(slides: Sequence[Path], scratch: Path) -> tuple[list[dict[str, Any]], list[Path]]:
    """Have QuPath add slides to a project of its own in the folder `scratch`, which is to be empty.

    Returns the members of its ``images``, several for a file with several images, and the data
    folder of each. QuPath opens each slide and draws its thumbnail. Raises TiaftError for a slide
    that is missing, or that no reader of this QuPath takes.
    """
    missing = [str(slide) for slide in slides if not slide.exists()]
    if missing:
        raise TiaftError(f"{missing[0]}: no such slide")
    start_java()
    load_openslide()
    from paquo.projects import QuPathProject

    folder = scratch / "project"
    with java_errors(scratch):
        project = QuPathProject(folder, mode="x")
    builders = [builder for slide in slides for builder in _added(project, slide)]
    with java_errors(scratch):
        project.save(images=False)
    entries = read_json(folder / _NAME, _WHAT).get("images") or []
    for entry, builder in zip(entries, builders, strict=True):
        entry["serverBuilder"] = builder
    return entries, [folder / "data" / str(entry["entryID"]) for entry in entries]


def _added(project: Any, slide: Path) -> list[dict[str, Any]]:
    """Add a slide; return the builder of each of its images, with size and µm/px in it.

    paquo leaves these out; with them QuPath 0.6 reads an image's objects without the slide.
    """
    import jpype
    from paquo.java import GsonTools

    kind = jpype.JClass("qupath.lib.images.servers.ImageServerBuilder$ServerBuilder").class_
    builders = []
    with java_errors(slide):
        try:
            images = project.add_image(slide.absolute(), allow_duplicates=True, return_list=True)
        except (OSError, RuntimeError) as error:
            raise TiaftError(
                f"{slide} cannot be added to a project: no reader of this QuPath takes it "
                f"({first_line(error)})"
            ) from error
        for image in images:
            server = image.java_object.getServerBuilder().build()
            text = GsonTools.getInstance().toJson(server.getBuilder(), kind)
            builders.append(json.loads(str(text)))
            server.close()
    return builders


def create_project(path: Path) -> Path:
    """Make an empty project, with no images and no classes; return its ``project.qpproj``.

    `path` is its folder, or the ``project.qpproj`` in it. It is there whole, or not at all. Raises
    TiaftError where something is there already.
    """
    folder = path.parent if path.suffix == ".qpproj" else path
    if path.suffix == ".qpproj" and path.name != _NAME:
        raise TiaftError(f"{path}: QuPath calls a new project {_NAME}: name its folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TiaftError(f"{folder} exists already: choose another name for a new project")
    start_java()
    from paquo.projects import QuPathProject

    if folder.exists():
        folder.rmdir()  # empty
    with write_folder_atomically(folder) as temporary, java_errors(folder):
        QuPathProject(temporary, mode="x").save(images=False)
        with edited_json(temporary / _NAME, _WHAT) as content:
            content["uri"] = (folder.absolute() / _NAME).as_uri()
    return folder / _NAME
