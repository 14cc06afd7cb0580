// Writes the annotations of this project's images, and the tiles whose class a person changed after
// tiaft gave it, to tiaft/export/<image>.geojson, for `tiaft qupath pull`.
// Made by `tiaft qupath push --no-java`, for QuPath 0.5 to 0.7.
//
// For all images: Run > Run for project (without saving): the images are only read.

import com.google.gson.Gson
import java.nio.file.Files
import java.nio.file.StandardCopyOption
import qupath.lib.io.PathIO
import qupath.lib.objects.PathObject
import qupath.lib.scripting.QP

def entry = QP.getProjectEntry()
if (entry == null) {
    println 'tiaft: open an image of the project, or choose Run > Run for project: nothing was done'
    return
}
println "tiaft: ${entry.getImageName()}: ${write(fileOf(entry))}"

// By the name that people know; where two images share it, with the number that tells them apart.
File fileOf(entry) {
    def name = safe(entry.getOriginalImageName())
    def names = QP.getProject().getImageList().collect { safe(it.getOriginalImageName()) }
    def alike = names.count { it.equalsIgnoreCase(name) }
    def folder = QP.buildFilePath(QP.PROJECT_BASE_DIR, 'tiaft', 'export')
    return new File(folder, name + (alike > 1 ? '-' + entry.getID() : '') + '.geojson')
}

String safe(String name) {
    return name.replaceAll('[\\x00-\\x1f<>:"/\\\\|?*]', '_')
}

String write(File file) {
    def known = [:]
    def hierarchy = QP.getCurrentHierarchy()
    def areas = hierarchy.getAnnotationObjects()
    def tiles = hierarchy.getTileObjects().findAll {
        def mark = markOf(it, known)
        mark != null && isCorrected(it, mark)
    }
    if (!areas && !tiles) {
        Files.deleteIfExists(file.toPath())
        return 'nothing to export'
    }
    file.getParentFile().mkdirs()
    def part = new File(file.getParentFile(), '.' + file.getName() + '.part')
    def option = PathIO.GeoJsonExportOptions.FEATURE_COLLECTION
    part.withOutputStream { PathIO.exportObjectsAsGeoJSON(it, areas + tiles, option) }
    Files.move(part.toPath(), file.toPath(), StandardCopyOption.REPLACE_EXISTING)
    return "${areas.size()} annotations and ${tiles.size()} corrected tiles written to ${file}"
}

@MARKS@
