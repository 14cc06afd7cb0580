"""Model names: specs, the user's model folder, and TIAToolbox's registry."""
