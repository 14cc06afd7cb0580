"""Expression tables as people have them, and whose slides they belong to."""
