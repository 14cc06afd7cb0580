"""What a channel stands for: pictures that make it respond most (activation maximisation)."""
