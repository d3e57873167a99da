#!/usr/bin/env bash
# Run the quick tests; flags go to pytest. Makes its environment by itself if the active one lacks something.
# -m "not slow" adds those that start processes and send signals, which .ci/run wants too; -m slow runs the long ones.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=roi_align_integration/tools/setup_env.sh
source "$ROOT/roi_align_integration/tools/setup_env.sh"
trap sprc_interrupted INT # until exec
sprc_setup --dev
cd "$ROOT"
CORES="$(getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS=1 # each of the processes that run tests has a core for itself
exec "$PYTHON" -m pytest -q -n "$((CORES < 8 ? CORES : 8))" --dist worksteal "$@"
