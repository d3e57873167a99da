# shellcheck shell=bash
# Sourced by the scripts that run Python: `sprc_setup [--dev]` sets PYTHON to an interpreter that has what is needed.
# The active environment serves if it is complete; else .venv is made once, and shared by all scripts.

SPRC_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
SPRC_VENV="$SPRC_ROOT/.venv"
SPRC_LOCK="$SPRC_ROOT/.venv.lock"
SPRC_UNFINISHED="$SPRC_VENV/sprc_unfinished" # there while .venv is made or installed into

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
  local status=1
  PYTHON="$(command -v python3 || command -v python || true)"
  SPRC_ANSWER="no Python on PATH"
  [[ -z "$PYTHON" ]] || { _sprc_check "$@" && return || status=$?; }
  [[ $status != 2 ]] || return 2
  PYTHON="$SPRC_VENV/bin/python"
  # A subshell: whatever ends it, be it an interrupt, gives the lock back.
  (trap 'exit 130' INT && _sprc_lock && _sprc_use_venv "$@")
}

# A Python that can make a virtual environment; prints its path.
sprc_base_python() {
  local name bare=""
  local PATH="${PATH//"$SPRC_VENV/bin:"/}" # an active .venv cannot make itself again
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    "$name" -c 'import ensurepip, venv' 2>/dev/null && command -v "$name" && return
    bare="$("$name" -c 'import sys; print("python{}.{}".format(*sys.version_info))')"
  done
  [[ -z "$bare" ]] ||
    _sprc_fail "$bare lacks venv and ensurepip; on Debian and Ubuntu: sudo apt install $bare-venv" || return
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

# Status 0: PYTHON has all; 1: it lacks what SPRC_ANSWER says; 2: a fault, which is said.
_sprc_check() {
  local status=0
  _sprc_probe "$@" || status=$?
  if [[ $status == 3 ]]; then
    echo "set-up: $SPRC_ANSWER: pip install --no-deps -e ."
    # With the setuptools that is there, this needs no network.
    _sprc_pip --no-deps --no-build-isolation -e . &>/dev/null || _sprc_pip --no-deps -e . &>/dev/null
    status=0
    _sprc_probe "$@" || status=$?
  fi
  [[ $status != 2 ]] || _sprc_fail "$SPRC_ANSWER" || return
  return $((status > 0))
}

# Held until the calling subshell ends. Some file systems know no flock: there a folder serves.
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
  local status=1
  if [[ -x "$PYTHON" && ! -e "$SPRC_UNFINISHED" ]]; then _sprc_check "$@" && return || status=$?; fi
  [[ $status != 2 ]] || return 2
  echo "set-up: ${SPRC_ANSWER##*$'\n'}"
  _sprc_make_venv && _sprc_install "$@" || return
  _sprc_check "$@" && return || status=$?
  [[ $status == 2 ]] || _sprc_fail "$SPRC_ANSWER; remove $SPRC_VENV and run this again"
  return 2
}

_sprc_make_venv() {
  local base
  [[ -e "$SPRC_UNFINISHED" ]] || ! "$PYTHON" -m pip --version &>/dev/null || return 0
  base="$(sprc_base_python)" || return
  echo "set-up: making $SPRC_VENV with $base"
  rm -rf "$SPRC_VENV"
  { mkdir "$SPRC_VENV" && echo >"$SPRC_UNFINISHED" && "$base" -m venv "$SPRC_VENV"; } ||
    _sprc_fail "$base could not make $SPRC_VENV"
}

_sprc_install() {
  local index
  index="$(sprc_python "$SPRC_ROOT/roi_align_integration/tools/check_env.py" --torch-index)" || return
  echo "set-up: installing the project and its packages into $SPRC_VENV: several GB with CUDA, 3 to 20 minutes, once"
  echo >"$SPRC_UNFINISHED"
  # torch and torchvision in one command, so that pip chooses them together.
  if [[ -n "$index" ]]; then
    echo "set-up: torch for this machine's driver and GPU from $index"
    _sprc_pip torch torchvision --index-url "$index" ||
      _sprc_not_installed "torch from $index" SPRC_TORCH_INDEX=https://mirrors.nju.edu.cn/pytorch/whl || return
  fi
  _sprc_pip -e ".${1:+[dev]}" ||
    _sprc_not_installed "the project" PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple || return
  rm "$SPRC_UNFINISHED"
}

_sprc_pip() {
  (cd "$SPRC_ROOT" && PIP_USER=0 "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@")
}

# _sprc_not_installed WHAT MIRROR
_sprc_not_installed() {
  rm "$SPRC_UNFINISHED" # what is there is whole: the next run continues from it
  _sprc_fail "pip could not install $1 (see above). On a slow line a mirror helps:
  export $2"
}
