"""TELL: a plan and what came of it, to JSON and back."""
