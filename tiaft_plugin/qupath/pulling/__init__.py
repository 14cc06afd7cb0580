"""Annotations and corrections out of QuPath, as a tile set."""
