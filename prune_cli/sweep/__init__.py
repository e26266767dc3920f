"""Many draws, each evaluated by the user's own command: the distribution behind one number.

grid.py         which trials there are: amounts, seeds, allocations, criteria
template.py     commands with placeholders
command.py      one command, run through the shell, that leaves no process behind
metric.py       the numbers in what a command printed or wrote
record.py       what came of a trial: a line of trials.jsonl
statistics.py   mean and spread, differences in pairs, agreement of ranks
assertions.py   `--assert 'mean(acc)@0.25 >= base - 0.5'`
"""
