"""QuPath: GeoJSON and projects."""
