"""Faithful presets against what the authors' own code made of the same numbers.

A *recording* holds everything that entered a few consecutive updates of an official code, every random draw included,
and everything that left. `recording` reads one by our names, `replay` sends it through a preset, `transcription`
computes what leaves from what enters in plain NumPy, written from ALGORITHMS.md.
"""
