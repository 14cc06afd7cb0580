"""Labelled tiles out of annotated slides."""
