#!/usr/bin/env bash
# Run the tests; flags go to pytest. Makes its environment by itself where the active one lacks something.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=roi_align_integration/tools/setup_env.sh
source "$ROOT/roi_align_integration/tools/setup_env.sh"
sprc_setup --dev
cd "$ROOT"
export OMP_NUM_THREADS=1 # the tests run in two processes
exec "$PYTHON" -m pytest -q -n 2 "$@"
