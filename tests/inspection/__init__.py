"""Tests of prune_cli.inspection."""
