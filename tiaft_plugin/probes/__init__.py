"""Probes: what features are worth downstream, by one protocol with intervals and baselines."""
