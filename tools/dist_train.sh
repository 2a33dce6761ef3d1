#!/usr/bin/env bash
# Train in several processes, one per GPU (or gloo processes on a CPU).
# Usage: tools/dist_train.sh CONFIG PROCESSES [flags of tools/train.py]
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^# Usage/usage/p' "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" \
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" --nproc_per_node="$2" \
    "$here/train.py" "$1" --launcher pytorch "${@:3}"
