#!/usr/bin/env bash
# A folder of shards, pruned by the workers of a scheduler: here two, on this machine.
#
#     bash examples/cluster.sh [FOLDER]
#
# On a cluster something else starts them (dask-jobqueue, a Helm chart, srun): what prune-cli wants
# is the scheduler's address, or the file that it wrote it to.
set -euo pipefail
examples=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$(mktemp -d)}"

prune-cli random-structured "$examples/digits.pt" -a 0 -d 0 --max-shard-size 50kB -o model --quiet

dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file scheduler.json 2>scheduler.log &
for worker in 1 2; do
    dask worker --scheduler-file scheduler.json --nthreads 1 --no-dashboard 2>"worker$worker.log" &
done
trap 'kill $(jobs -p); wait' EXIT
until [ -s scheduler.json ]; do sleep 0.2; done

prune() { prune-cli random-structured model --amount 0.25 --dim 0 --exclude digit --quiet "$@"; }

prune -o there/pruned --scheduler scheduler.json
prune -o here/pruned
diff -r there here && echo "workers and one process write the same bytes"
prune-cli verify there/pruned model --scheduler scheduler.json --quiet && echo "verified"
