"""LOOK: what is in a checkpoint."""
