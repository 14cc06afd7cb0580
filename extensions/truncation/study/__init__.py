"""The study: which cut, from which weights, with how much data."""
