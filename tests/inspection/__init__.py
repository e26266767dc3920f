"""Tests of the room that looks into checkpoints."""
