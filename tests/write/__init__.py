"""Tests of prune_cli.write."""
