"""Tests of `prune_cli.shrink`; they need the extra of that name."""
