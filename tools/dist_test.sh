#!/usr/bin/env bash
# Evaluate in several processes, one per GPU (or gloo processes on a CPU).
# Usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of test.py]
set -euo pipefail
[ $# -ge 3 ] || { sed -n 's/^# Usage/usage/p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" --nproc_per_node="$3" \
    "$here/test.py" "$1" "$2" --launcher pytorch "${@:4}"
