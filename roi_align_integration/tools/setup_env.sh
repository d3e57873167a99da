# shellcheck shell=bash
# Sourced by the scripts that run Python: `sprc_setup [--dev]` sets PYTHON to an interpreter that has what is needed.
# The active environment serves where it is complete; else .venv is made once, and shared by all scripts.

SPRC_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
SPRC_VENV="$SPRC_ROOT/.venv"

sprc_setup() {
  local status=0 active
  active="$(command -v python3 || command -v python || true)"
  if [[ -n "$active" ]]; then
    local message
    message="$("$active" "$SPRC_ROOT/roi_align_integration/tools/check_env.py" "$@" 2>&1)" || status=$?
    if [[ $status -eq 0 ]]; then
      PYTHON="$active"
      return 0
    fi
    if [[ $status -eq 2 ]]; then
      echo "error: $message" >&2
      return 2
    fi
  fi
  _sprc_locked_venv "$@"
}

_sprc_locked_venv() {
  if command -v flock >/dev/null; then
    exec 9>"$SPRC_ROOT/.venv.lock"
    flock 9
  fi
  status=0
  _sprc_venv "$@" || status=$?
  if command -v flock >/dev/null; then
    exec 9>&-
  fi
  return "$status"
}

_sprc_venv() {
  local requirements="requirements.txt" stamp wanted
  [[ "${1:-}" == "--dev" ]] && requirements="requirements-dev.txt"
  stamp="$SPRC_VENV/$requirements.stamp"
  wanted="$(cat "$SPRC_ROOT"/requirements*.txt | cksum)"
  PYTHON="$SPRC_VENV/bin/python"
  if [[ ! -f "$stamp" || "$(cat "$stamp")" != "$wanted" ]] || ! "$PYTHON" -c '' 2>/dev/null; then
    _sprc_make_venv || return
    _sprc_install "$requirements" || return
    echo "$wanted" >"$stamp"
  fi
  if [[ -f "$SPRC_VENV/checked" && "$SPRC_VENV/checked" -nt "$stamp" && "${1:-}" != "--dev" ]]; then
    return 0
  fi
  "$PYTHON" "$SPRC_ROOT/roi_align_integration/tools/check_env.py" "$@" >/dev/null || return 2
  touch "$SPRC_VENV/checked"
}

_sprc_make_venv() {
  local base
  "$PYTHON" -c '' 2>/dev/null && return 0
  base="$(_sprc_base_python)" || return
  echo "set-up: making $SPRC_VENV with $base"
  "$base" -m venv --clear "$SPRC_VENV" || {
    echo "error: $base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
    return 2
  }
}

_sprc_base_python() {
  local name
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return 0
    fi
  done
  echo "error: no Python 3.11 or newer on PATH: install one, e.g. apt install python3.11 python3.11-venv" >&2
  return 2
}

_sprc_install() {
  echo "set-up: installing $1 into $SPRC_VENV, several GB with CUDA; this takes minutes, once"
  # One command for all, so that pip chooses torch and torchvision together.
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$SPRC_ROOT/$1" || {
    echo "error: pip could not install $1. Behind a slow line a mirror helps:" >&2
    echo "  export PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple" >&2
    return 2
  }
}
