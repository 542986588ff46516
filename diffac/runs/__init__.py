"""A run on disk and the way back: its folder, configuration, recipe and checkpoints."""
