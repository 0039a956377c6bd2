"""Checkpoint files: the authors', downloads, conversion and publishing."""
