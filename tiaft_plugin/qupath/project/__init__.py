"""A QuPath project on disk, without Java: read, matched with slides, and changed safely."""
