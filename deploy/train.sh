#!/bin/sh
# A training that may be started any number of times: it begins the run, or goes on where it was saved.
#
#   RUN=my-run OUT_DIR=/shared/checkpoints deploy/train.sh --preset large-modern --data /shared/corpus
#
# This is one rank. torchrun, srun or Kubernetes start many of them, each with RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
# MASTER_PORT; without these it is a training on this machine alone. OUT_DIR must be a folder that all hosts see.
set -eu

run=${RUN:?set RUN to the name of the run}
out=${OUT_DIR:-checkpoints}
cd "$(dirname "$0")/.."

# All ranks look before any can write: none begins before the last one has come.
# No name here is one of a file that was still being written (*.tmp): there is nothing to resume in it.
for state in "$out/$run"/last.pt.new "$out/$run"/last.pt "$out/$run"/previous.pt "$out/$run"/step_*.pt \
    "$out/$run"/last_*.dcp/content.pt "$out/$run"/step_*.dcp/content.pt; do
    if [ -e "$state" ]; then
        set -- --resume "$@"
        break
    fi
done
exec "${PYTHON:-python}" train_cli.py --run "$run" --out_dir "$out" "$@" --no-progress
