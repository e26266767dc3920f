"""DECIDE: which channels of which tensors go, before any weight flows."""
