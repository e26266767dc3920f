"""LOOK: what is in a checkpoint, before anything is done to it.

Reading order: `facts` (what is found), `inspect` (finds it), `zeros` (the only file that reads
weights), `outline` (modules as a tree), `globs` (patterns for `--module`), `listing` (rows that
are sorted and cut); `diff` (two checkpoints), `values` (the numbers that bits stand for).
"""
