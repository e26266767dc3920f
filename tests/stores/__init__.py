"""Checkpoints in stores, read and written."""
