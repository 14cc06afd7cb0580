"""Where attention lies: heat maps of slides, the tiles with the most, and numbers for QuPath."""
