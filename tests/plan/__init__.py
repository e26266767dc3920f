"""Tests of prune_cli.plan."""
