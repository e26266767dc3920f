"""Tests of prune_cli.cli."""
