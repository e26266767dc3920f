"""A standing fuzz: damaged inputs that keep their structure, through everything that reads them.

    python -m tests.fuzz --minutes 2 --seed 0

A subject (`subjects`) is an input cut into tokens, such as opcodes or the words of JSON. A case is
its tokens after a few changes (`changes`); `exercise` puts it through opening, inspecting, pruning,
replaying and verifying, and says what does not hold; `watch` does that in processes of their own,
which may take neither too long nor too much memory; `minimise` shortens what was found.
"""
