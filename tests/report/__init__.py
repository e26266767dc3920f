"""Tests of prune_cli.report."""
