"""Fine-tuners: from labelled tiles to a model file."""
