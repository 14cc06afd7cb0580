"""Predictions into projects: what is added, replaced and kept, and a script for QuPath."""
