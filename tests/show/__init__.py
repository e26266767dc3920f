"""Tests of prune_cli.show."""
