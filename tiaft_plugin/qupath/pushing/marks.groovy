// What each object carries that tiaft wrote: its model, and the class and outline it was given.
// As marks.py and plan.py of tiaft_plugin.qupath have it.

Map markOf(PathObject object, Map known) {
    def hidden = object.getMetadata().get('_tiaft')
    if (hidden == null)
        return null
    if (!known.containsKey(hidden))  // there are few different ones
        known.put(hidden, readMark(hidden))
    return known.get(hidden)
}

Map readMark(String hidden) {
    try {
        def mark = new Gson().fromJson(hidden, Map.class)
        mark.putIfAbsent('shape', '')
        def whole = ['sha256', 'grid', 'class', 'shape'].every { mark.get(it) instanceof String }
        return whole ? mark : null
    } catch (Exception somebodyElses) {
        return null
    }
}

boolean isCorrected(PathObject object, Map mark) {
    def name = object.getPathClass() == null ? '' : object.getPathClass().toString()
    return name != mark.get('class') || shapeOf(object) != mark.get('shape')
}

String shapeOf(PathObject object) {
    if (!object.isAnnotation())
        return ''
    def roi = object.getROI()
    def x = roi.getBoundsX(), y = roi.getBoundsY()
    def numbers = [x, y, x + roi.getBoundsWidth(), y + roi.getBoundsHeight(), roi.getArea()]
    return numbers.collect { (Math.rint(it) as long).toString() }.join(' ')
}
