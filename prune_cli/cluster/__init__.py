"""Who runs units of work: threads, the workers of a cluster, or the jobs of an array.

A unit is one output shard or one trial of a sweep. It depends on nothing but what it is given,
finds out by itself whether it was done before, and returns a small value.

`engine` (submit units, a window at a time), `scheduler` (the engine that dask.distributed is),
`runs` (how units elsewhere learn that nobody waits for them any more), `parts` (shares of the
units, for job arrays without an engine).
"""
