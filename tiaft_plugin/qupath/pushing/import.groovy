// Puts tile predictions of @MODEL@, which tiaft wrote beside this project, into its images.
// Made by `tiaft qupath push --no-java`, for QuPath 0.5 to 0.7.
//
// For all images: Run > Run for project. For the open image alone: Run > Run, then File > Save.
// It can be run again: what it added before is replaced, except what a person changed since.

import com.google.gson.Gson
import com.google.gson.JsonObject
import qupath.lib.common.ColorTools
import qupath.lib.io.GsonTools
import qupath.lib.objects.PathObject
import qupath.lib.objects.classes.PathClass
import qupath.lib.scripting.QP

def entry = QP.getProjectEntry()
if (entry == null) {
    println 'tiaft: open an image of the project, or choose Run > Run for project: nothing was done'
    return
}
def folder = QP.buildFilePath(QP.PROJECT_BASE_DIR, 'tiaft')
def file = new File(folder, entry.getID() + '-@SHORT@.geojson')
if (!file.isFile()) {
    println "tiaft: ${entry.getImageName()}: no predictions of @MODEL@ for it, left as it is"
    return
}
try {
    println "tiaft: ${entry.getImageName()}: ${takeIn(file)}"
} catch (Exception error) {
    println "tiaft: ${entry.getImageName()}: NOTHING WAS CHANGED: ${error.getMessage() ?: error}"
}

// Replaces the model's objects by those of a file, and says what was done. Everything is read and
// checked before anything is changed.
String takeIn(File file) {
    def origin = readOrigin(file)
    refuseOtherImage(origin.image)
    def objects = readObjects(file, origin)
    def hierarchy = QP.getCurrentHierarchy()
    def plan = planPush(hierarchy.getAllObjects(false), objects, origin)

    extendClasses(origin.classes)
    hierarchy.removeObjects(plan.remove, true)
    hierarchy.addObjects(plan.add)
    def told = ''
    try {
        tellImage(origin.metadata)
    } catch (Exception error) {
        told = "; its metadata could not be written: ${error.getMessage() ?: error}"
    }
    def done = "${plan.add.size()} objects of ${origin.model} added, ${plan.remove.size()} removed"
    return done + (plan.corrected ? ", ${plan.corrected} kept that a person changed" : '') + told
}

Map readOrigin(File file) {
    def end = new RandomAccessFile(file, 'r').withCloseable {
        it.seek(Math.max(0, it.length() - 4))
        "${it.readLine()}${it.readLine()}"
    }
    if (end != ']}')
        throw new IOException("${file} is not whole: copy it again")
    def line = file.withReader('UTF-8') { it.readLine(); it.readLine() }
    def origin = null
    def name = '"tiaft":'
    if (line != null && line.startsWith(name) && line.endsWith(','))
        origin = new Gson().fromJson(line.substring(name.length(), line.length() - 1), Map.class)
    if (origin?.sha256 != '@SHA256@')
        throw new IOException("${file} is not what was pushed with this script: push again")
    return origin
}

void refuseOtherImage(Map image) {
    def server = QP.getCurrentServer()
    def here = "${server.getWidth()} x ${server.getHeight()}"
    def there = "${image.width as int} x ${image.height as int}"
    if (here != there)
        throw new IOException("it is ${here} px, the predictions are for ${there}: another image")
}

// One line, one object: a file of a million tiles is never in memory as JSON.
List readObjects(File file, Map origin) {
    def objects = []
    file.eachLine('UTF-8') { line ->
        if (line.startsWith('{"type":"Feature",'))
            objects << readObject(line.endsWith(',') ? line.substring(0, line.length() - 1) : line)
    }
    if (objects.size() != (origin.count as int))
        throw new IOException("${file} is not whole: copy it again")
    return objects
}

PathObject readObject(String line) {
    def gson = GsonTools.getInstance()
    def feature = gson.fromJson(line, JsonObject.class)
    def metadata = feature.getAsJsonObject('properties').remove('metadata')
    def object = gson.fromJson(feature, PathObject.class)
    if (object.isAnnotation())
        setShape(metadata, shapeOf(object))
    for (entry in metadata.entrySet())  // equal texts are kept once
        store(object, entry.getKey().intern(), entry.getValue().getAsString().intern())
    return object
}

// An outline as QuPath has it now, which may have rounded it, is one that no person moved.
void setShape(JsonObject metadata, String shape) {
    def mark = new Gson().fromJson(metadata.get('_tiaft').getAsString(), JsonObject.class)
    mark.addProperty('shape', shape)
    metadata.addProperty('_tiaft', new Gson().toJson(mark))
}

// QuPath 0.5 reads the metadata of tiles, saves it and shows it, but has no public way to set it.
void store(PathObject object, String key, String value) {
    try {
        object.getMetadata().put(key, value)
    } catch (UnsupportedOperationException readOnly) {
        def method = PathObject.class.getDeclaredMethod('storeMetadataValue', String, String)
        method.setAccessible(true)
        method.invoke(object, key, value)
    }
}

// As plan_push in plan.py: the model's objects go, except those that a person changed; what a kept
// object stands for is not added again.
Map planPush(Collection found, List objects, Map origin) {
    def known = [:], remove = [], places = [:]
    def kept = new HashSet()
    int corrected = 0
    for (object in found) {
        def mark = markOf(object, known)
        if (mark == null)
            continue
        if (mark.sha256 == origin.sha256 && !isCorrected(object, mark)) {
            remove << object
            continue
        }
        kept << object.getID()
        if (mark.sha256 == origin.sha256) {
            corrected++
            if (mark.shape == '' && origin.kind == 'tile')
                occupy(places, boundsOf(object))
        }
    }
    def add = objects.findAll {
        !kept.contains(it.getID()) && (places.isEmpty() || !isTaken(places, boundsOf(it)))
    }
    return [remove: remove, add: add, corrected: corrected]
}

List boundsOf(PathObject object) {
    def roi = object.getROI()
    def x = roi.getBoundsX(), y = roi.getBoundsY()
    return [x, y, x + roi.getBoundsWidth(), y + roi.getBoundsHeight()]
}

// Bounds by each whole pixel that the corner of a tile at the same place may lie in.
void occupy(Map places, List bounds) {
    def columns = [bounds[0] - 0.5d, bounds[0] + 0.5d].collect { Math.floor(it) as long }.unique()
    def rows = [bounds[1] - 0.5d, bounds[1] + 0.5d].collect { Math.floor(it) as long }.unique()
    for (column in columns)
        for (row in rows)
            places.computeIfAbsent(column + ' ' + row, { [] }) << bounds
}

boolean isTaken(Map places, List bounds) {
    def near = places.get((Math.floor(bounds[0]) as long) + ' ' + (Math.floor(bounds[1]) as long))
    return near != null && near.any { other ->
        (0..3).every { Math.abs(bounds[it] - other[it]) < 0.5d }
    }
}

// Never shortens the list, never recolours a class that is there.
void extendClasses(List classes) {
    def project = QP.getProject()
    def extended = { Collection there ->
        def ours = classes.collect { each ->
            def (red, green, blue) = each.color.collect { it as int }
            PathClass.fromString(each.name, ColorTools.packRGB(red, green, blue))
        }
        new ArrayList(new LinkedHashSet(there + ours))
    }
    withWindow { window ->  // its list would replace the project's
        def shown = window.getAvailablePathClasses()
        shown.setAll(extended(shown))
    }
    project.setPathClasses(extended(project.getPathClasses()))
}

// In the image's metadata, one entry a model: what an older push said of this one goes.
void tellImage(Map metadata) {
    def entry = QP.getProjectEntry()
    for (text in metadata.values()) {
        def start = text.substring(0, text.indexOf(', ') + 2)
        def older = entry.getMetadataKeys().findAll { entry.getMetadataValue(it).startsWith(start) }
        older.each { entry.removeMetadataValue(it) }
    }
    metadata.each { key, text -> entry.putMetadataValue(key, text) }
    QP.getProject().syncChanges()
    withWindow { window -> window.refreshProject() }
}

// Runs an action on QuPath's window, where there is one, in the thread that may change it.
void withWindow(Closure action) {
    def window = null
    try {
        window = Class.forName('qupath.lib.gui.QuPathGUI').getInstance()
    } catch (Throwable noWindow) {
        return
    }
    if (window != null && window.getProject() == QP.getProject())
        Class.forName('javafx.application.Platform').runLater({ action(window) } as Runnable)
}

@MARKS@
