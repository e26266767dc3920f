#!/usr/bin/env bash
# A folder of shards in S3, pruned into another: nothing of it is kept on this machine.
#
#     bash examples/s3_folder.sh [s3://BUCKET/MODEL]
#
# Without a folder of your own it runs a store here (moto_server, of the extra `test`), with a small
# model in it.
set -euo pipefail

if [ $# -eq 0 ]; then
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    moto_server -H 127.0.0.1 -p "$port" >"$(mktemp)" 2>&1 &
    trap 'kill $!' EXIT
    export AWS_ENDPOINT_URL=http://127.0.0.1:$port AWS_DEFAULT_REGION=us-east-1
    export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing
    python - "$port" <<'PYTHON'
import socket, sys, time
import fsspec

for _ in range(600):
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0:
            break
    time.sleep(0.1)
fsspec.filesystem("s3").mkdir("models")
PYTHON
    set -- s3://models/digits
    prune-cli random-structured "$(dirname "$0")/digits.pt" --amount 0 --dim 0 --module 'conv*' \
        --max-shard-size 100kB --output "$1" --quiet
fi

# The plan: headers are all that is read.
prune-cli random-structured "$1" --amount 0.25 --dim 0 --exclude digit --dry-run --quiet --report - |
    python -c 'import json, sys; print(json.load(sys.stdin)["totals"])'

# From store to store. Again with --resume if it was interrupted.
prune-cli random-structured "$1" --amount 0.25 --dim 0 --exclude digit --output "$1.pruned" --resume --quiet

prune-cli verify "$1.pruned" --source "$1"
