"""From slides to feature stores and tile predictions."""
