"""Top-k fine-tuning: the tiles with the most attention teach the encoder their bag's label."""
