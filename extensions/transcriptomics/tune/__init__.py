"""Fine-tuning a tile encoder on the expression of its slides, directly or by contrast."""
