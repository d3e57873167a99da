# shellcheck shell=bash
# Sourced by the scripts that run Python: `sprc_setup [--dev]` sets PYTHON to an interpreter that has what is needed.
# The active environment serves where it is complete; else .venv is made once, and shared by all scripts.

SPRC_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
SPRC_VENV="$SPRC_ROOT/.venv"
SPRC_LOCK="$SPRC_ROOT/.venv.lock"
SPRC_STAMP="$SPRC_VENV/sprc_installed" # the requirements that are installed, or `unfinished`

# sprc_python SCRIPT [FLAGS]: Ctrl-C ends it without a trace from its first line on.
sprc_python() {
  "$PYTHON" "$SPRC_ROOT/src/sprc/core/interrupts.py" "$@"
}

# For `trap sprc_interrupted INT`: one line, whatever was running.
sprc_interrupted() {
  echo "interrupted" >&2
  exit 130
}

sprc_setup() {
  local status=0
  PYTHON="$(command -v python3 || command -v python || true)"
  SPRC_ANSWER="no Python on PATH"
  if [[ -n "$PYTHON" ]]; then
    _sprc_probe "$@" || status=$?
    case $status in
      0) return ;;
      2) _sprc_fail "$SPRC_ANSWER" || return ;;
    esac
  fi
  PYTHON="$SPRC_VENV/bin/python"
  # A subshell: whatever ends it, be it an interrupt, gives the lock back.
  (trap 'exit 130' INT && _sprc_lock && _sprc_use_venv "$@")
}

# A Python that can make a virtual environment; prints its path.
sprc_base_python() {
  local name bare=""
  local PATH="${PATH//"$SPRC_VENV/bin:"/}" # an active .venv cannot make itself anew
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      command -v "$name"
      return
    fi
    bare="$("$name" -c 'import sys; print("python{}.{}".format(*sys.version_info))')"
  done
  if [[ -n "$bare" ]]; then
    _sprc_fail "$bare lacks venv and ensurepip; on Debian and Ubuntu: sudo apt install $bare-venv" || return
  fi
  _sprc_fail "no Python 3.11 or newer on PATH; on Debian and Ubuntu: sudo apt install python3.11 python3.11-venv;
  with conda: conda create -n sprc python=3.11, then conda activate sprc"
}

_sprc_fail() {
  echo "error: $1" >&2
  return 2
}

_sprc_probe() {
  SPRC_ANSWER="$(sprc_python "$SPRC_ROOT/roi_align_integration/tools/check_env.py" "$@" 2>&1)"
}

# Held until the calling subshell ends. Some file systems know no flock: a folder serves there.
_sprc_lock() {
  local waiting="set-up: waiting for another set-up of $SPRC_VENV"
  if command -v flock >/dev/null && exec 9>"$SPRC_LOCK"; then
    flock -n 9 2>/dev/null && return
    echo "$waiting"
    flock 9 && return
  fi
  until mkdir "$SPRC_LOCK.d" 2>/dev/null; do
    [[ -d "$SPRC_LOCK.d" ]] || _sprc_fail "cannot write to $SPRC_ROOT" || return
    [[ -z "$waiting" ]] || echo "$waiting (if none is running, remove $SPRC_LOCK.d)"
    waiting=""
    sleep 1
  done
  trap 'rmdir "$SPRC_LOCK.d"' EXIT
}

_sprc_use_venv() {
  local requirements="requirements.txt" hash stamp status=0
  if [[ "${1:-}" == "--dev" ]]; then requirements="requirements-dev.txt"; fi
  hash="$(cat "$SPRC_ROOT"/requirements*.txt | cksum)"
  stamp="$(cat "$SPRC_STAMP" 2>/dev/null || true)"
  # What the tests need includes what a run needs.
  if [[ "$stamp" == "$requirements $hash" || "$stamp" == "requirements-dev.txt $hash" ]]; then
    _sprc_probe --passed "$SPRC_VENV/sprc_passed" "$@" || status=$?
    case $status in
      0) return ;;
      2) _sprc_fail "$SPRC_ANSWER" || return ;;
    esac
  fi
  echo "set-up: ${SPRC_ANSWER##*$'\n'}"
  _sprc_make_venv "$stamp" || return
  _sprc_install "$requirements" "$hash" || return
  status=0
  _sprc_probe --passed "$SPRC_VENV/sprc_passed" "$@" || status=$?
  case $status in
    0) ;;
    2) _sprc_fail "$SPRC_ANSWER" ;;
    *) _sprc_fail "$SPRC_ANSWER; remove $SPRC_VENV and run this again" ;;
  esac
}

_sprc_make_venv() {
  local base
  if [[ "$1" != "unfinished" ]] && "$PYTHON" -m pip --version >/dev/null 2>&1; then
    return
  fi
  base="$(sprc_base_python)" || return
  echo "set-up: making $SPRC_VENV with $base"
  rm -rf "$SPRC_VENV"
  if ! { mkdir "$SPRC_VENV" && echo unfinished >"$SPRC_STAMP" && "$base" -m venv "$SPRC_VENV"; }; then
    _sprc_fail "$base could not make $SPRC_VENV"
  fi
}

_sprc_install() {
  local index
  index="$(sprc_python "$SPRC_ROOT/roi_align_integration/tools/check_env.py" --torch-index)" || return
  echo "set-up: installing $1 into $SPRC_VENV: several GB with CUDA, 3 to 20 minutes, once"
  echo unfinished >"$SPRC_STAMP"
  # torch and torchvision in one command, so that pip chooses them together.
  if [[ -n "$index" ]]; then
    echo "set-up: torch for this machine's driver and GPU from $index"
    _sprc_pip torch torchvision --index-url "$index" || _sprc_not_installed "torch from $index" \
      "SPRC_TORCH_INDEX=https://mirrors.nju.edu.cn/pytorch/whl" || return
  fi
  _sprc_pip -r "$SPRC_ROOT/$1" || _sprc_not_installed "$1" \
    "PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple" || return
  echo "$1 $2" >"$SPRC_STAMP"
}

_sprc_pip() {
  PIP_USER=0 "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@"
}

# _sprc_not_installed WHAT MIRROR
_sprc_not_installed() {
  rm "$SPRC_STAMP" # what is there is whole: the next run goes on from it
  _sprc_fail "pip could not install $1 (see above). Behind a slow line a mirror helps:
  export $2"
}
