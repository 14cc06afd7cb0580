"""Tile sets: read, checked, split, fingerprinted."""
