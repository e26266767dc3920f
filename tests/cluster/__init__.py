"""Tests of `prune_cli.cluster`, and of what runs on it."""
