"""Tests of prune_cli.verify."""
