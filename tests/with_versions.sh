#!/usr/bin/env bash
# The tests, in an environment of their own: a Python, and the versions of a constraints file.
#
#     tests/with_versions.sh python3.13 constraints.txt [ARGUMENTS OF PYTEST]
#     tests/with_versions.sh python3.11 tests/oldest.txt tests/plan tests/write
#
# It works on a copy of the checkout in a temporary folder, and needs a package index.
set -euo pipefail
python=$1 constraints=$(realpath "$2")
shift 2
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -xf - -C "$work"
cd "$work"

"$python" -m venv .venv
# torch first: one that is there keeps pip from looking for a newer one with gigabytes of CUDA.
torch=$(grep -E '^torch==' "$constraints")
.venv/bin/pip install --quiet "$torch" -c "$constraints"
.venv/bin/pip install --quiet -c "$constraints" -e '.[shrink,plot,examples,test]'
.venv/bin/pip list
.venv/bin/python -m pytest "$@"
