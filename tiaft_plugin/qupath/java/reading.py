"""How QuPath reads an image's data file, version by version."""

from contextlib import suppress
from typing import Any

import jpype
from jpype import JClass

from tiaft_plugin.errors import TiaftError, first_line
from tiaft_plugin.qupath.java.objects import integer, qupath_class
from tiaft_plugin.qupath.java.start import at_least, load_openslide
from tiaft_plugin.qupath.project.project_file import ImageEntry, read_classes


def take_colours(entry: ImageEntry) -> list[str]:
    """Give classes the colours of the project's list, as QuPath does when it opens a project.

    Returns their names.
    """
    names = []
    for name, colour in read_classes(entry.folder.parent.parent / "project.qpproj"):
        with suppress(jpype.JException):  # a name that QuPath does not take
            path_class = qupath_class("objects.classes.PathClass").fromString(name)
            names.append(str(path_class))
            if colour is not None:
                path_class.setColor(integer(colour))
    return names


def read(entry: ImageEntry, there: bool) -> Any:
    """Return QuPath's own ImageData."""
    kind = qupath_class("images.servers.ImageServerBuilder$ServerBuilder")
    builder = qupath_class("io.GsonTools").getInstance().fromJson(entry.builder, kind.class_)
    if builder is None:
        raise TiaftError(f"{entry.name}: the project does not say what file the image is of")
    source = builder if at_least("0.6") else _server(entry, builder)
    if not there:
        hierarchy = qupath_class("objects.hierarchy.PathObjectHierarchy")()
        return qupath_class("images.ImageData")(source, hierarchy, None)
    data = _read_from(JClass("java.io.FileInputStream")(str(entry.data)), source)
    data.setLastSavedPath(str(entry.data), True)
    _undo_steps(data, source)
    return data


def _read_from(stream: Any, source: Any) -> Any:
    """Have QuPath read a data file; `source` is a server builder, or for QuPath 0.5 a server."""
    if at_least("0.6"):
        return qupath_class("io.PathIO").readImageData(stream, source)
    pixels = JClass("java.awt.image.BufferedImage").class_
    return qupath_class("io.PathIO").readImageData(stream, None, source, pixels)


def _server(entry: ImageEntry, builder: Any) -> Any:
    """Open the slide, which QuPath 0.5 cannot do without."""
    load_openslide()
    where = entry.path
    if where is not None and where.exists():  # it may have moved along with the project
        now = JClass("java.io.File")(str(where)).toURI()
        moves = JClass("java.util.HashMap")()
        moves.put(JClass("java.net.URI")(entry.uris[0]), now)
        builder = builder.updateURIs(moves)
    try:
        server, reason = builder.build(), "no reader takes it"
        if server is not None:
            server.close()  # its description is all that is needed
    except jpype.JException as error:
        server, reason = None, first_line(error)
    if server is None:
        raise TiaftError(
            f"{entry.name}: QuPath 0.5 reads an image's objects only together with the slide, and "
            f"cannot open {where or entry.uris[0]} ({reason}): bring it there, or use QuPath 0.6 "
            "or later (PAQUO_QUPATH_DIR)"
        )
    return server


def _undo_steps(data: Any, source: Any) -> None:
    """Take out of the history what QuPath 0.6 and 0.7 put before it whenever they read a file.

    How much that is shows a blank image of the same type, written and read again.
    """
    blank = qupath_class("objects.hierarchy.PathObjectHierarchy")()
    probe = qupath_class("images.ImageData")(source, blank, data.getImageType())
    step = qupath_class("plugins.workflow.DefaultScriptableWorkflowStep")("tiaft", "")
    probe.getHistoryWorkflow().clear()
    probe.getHistoryWorkflow().addStep(step)
    file = JClass("java.io.ByteArrayOutputStream")()
    qupath_class("io.PathIO").writeImageData(file, probe)
    again = _read_from(JClass("java.io.ByteArrayInputStream")(file.toByteArray()), source)
    before = int(again.getHistoryWorkflow().getSteps().indexOf(step))
    history = data.getHistoryWorkflow()
    steps = JClass("java.util.ArrayList")(history.getSteps())
    if before > 0:
        history.clear()
        history.addSteps(steps.subList(before, steps.size()))
