"""Architectures of transformers and others, shrunk and checked: the table in docs/architectures.md."""
