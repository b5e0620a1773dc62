#!/usr/bin/env bash
# Makes .venv at the project's root and installs one pinned set of packages: the CPU set, or the GPU set where
# nvidia-smi finds a GPU. Every make target calls it first; with nothing to do it ends in a few milliseconds.
#
#   CHUXIN_DEVICE=cpu|gpu   choose the set instead of looking for a GPU
#   CHUXIN_PYTHON=PATH      the Python 3.11 or 3.12 to build on (default: the first found)
#
# The versions stand in cluster/requirements/{cpu,gpu}.txt, which `make lock` writes from pyproject.toml. The stamp
# is written last, so an interrupted run is begun anew, and a changed lock builds a fresh .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=.venv
MARK=$VENV/chuxin-made # this script made the folder and may remove it
STAMP=$VENV/chuxin-stamp
LOG=$VENV/setup.log
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

fail() {
    echo "error: cluster/setup.sh: $1" >&2
    exit 1
}

# What an installed set is known by: device, lock, interpreter, place (a .venv cannot be moved).
stamp() {
    local lock
    lock=$(sha256sum "cluster/requirements/$1.txt")
    echo "$1 ${lock%% *} $(readlink -f "$VENV/bin/python") $PWD"
}

is_ready() {
    [ -f "$STAMP" ] && [ -x "$VENV/bin/python" ] || return 1
    local have
    have=$(<"$STAMP")
    case "${CHUXIN_DEVICE:-${have%% *}}" in
    cpu | gpu) [ "$have" = "$(stamp "${CHUXIN_DEVICE:-${have%% *}}")" ] ;;
    *) return 1 ;;
    esac
}

is_ready && exit 0

# Two terminals at once: the second waits, and then finds the work done.
exec 9<cluster
flock 9
is_ready && exit 0

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    fail "this is $(uname -s) on $(uname -m), and the pinned wheels are for x86-64 Linux. Use such a machine or container"
[ ! -e "$VENV" ] || [ -e "$MARK" ] ||
    fail "$VENV exists and was not made by this script. Move it away and run again"

device=${CHUXIN_DEVICE:-}
[ -n "$device" ] || { nvidia-smi -L 2>/dev/null | grep -q GPU && device=gpu || device=cpu; }
[ "$device" = cpu ] || [ "$device" = gpu ] ||
    fail "CHUXIN_DEVICE is '$device'. Set it to cpu or gpu, or leave it out"
lock=cluster/requirements/$device.txt

# A name on PATH proves nothing (version managers put shims there): ask each one that answers.
python=
for candidate in ${CHUXIN_PYTHON:-python3.11 python3.12 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python=$("$candidate" -c 'import sys; print(sys.executable)')
        break
    fi
done
[ -n "$python" ] ||
    fail "no Python 3.11 or 3.12 found. Install one (Debian and Ubuntu: python3.11-venv and python3.11-dev) or name it in CHUXIN_PYTHON"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments. Install its venv package (Debian and Ubuntu: python3-venv)"
# DeepSpeed compiles a small C++ extension when it is first used.
command -v "${CXX:-g++}" >/dev/null ||
    fail "no C++ compiler, and DeepSpeed compiles one operation at first use. Install g++ (Debian and Ubuntu: g++)"
"$python" -c 'import pathlib, sys, sysconfig as s; sys.exit(not pathlib.Path(s.get_path("include"), "Python.h").exists())' ||
    fail "$python lacks its C headers, and DeepSpeed compiles one operation at first use. Install them (Debian and Ubuntu: python3-dev)"

pinned() { grep -m1 "^$1==" "$lock"; }

# pip's own words go to the log; the terminal gets one line.
install() {
    local reason
    "$VENV/bin/python" -m pip install --no-compile --disable-pip-version-check --no-input "$@" >>"$LOG" 2>&1 && return
    reason="pip failed. See $LOG"
    if grep -qE 'Temporary failure|Name or service|Max retries|NewConnection|ConnectTimeout|Connection (refused|reset)|Network is unreachable|Could not find a version' "$LOG"; then
        reason="the package registry cannot be reached or lacks a pinned package ($LOG). Connect this machine, or point pip at a mirror (PIP_INDEX_URL) or a folder of wheels (PIP_FIND_LINKS), and run again"
    elif grep -q 'No space left' "$LOG"; then
        reason="the disk is full. The $device set needs $([ "$device" = cpu ] && echo 4 || echo 14) GB here and in the folder for temporary files"
    fi
    fail "$reason"
}

echo "setup: $VENV on $("$python" -V), the ${device^^} set ($(grep -c '^[[:alnum:]]' "$lock") packages); this happens once"
rm -rf "$VENV"
mkdir "$VENV"
touch "$MARK"
"$python" -m venv "$VENV"
install --no-deps --retries 1 "$(pinned pip)"
if [ "$device" = cpu ]; then
    # Without this index the public registry's CUDA build would come, with gigabytes of libraries. pip may be
    # configured with a CPU build of its own; where the index cannot be reached it costs a moment and no more.
    install --no-deps --retries 0 --extra-index-url "$TORCH_CPU_INDEX" "$(pinned torch)"
    if "$VENV/bin/python" -c 'import importlib.metadata as m, sys; sys.exit("+cpu" in m.version("torch"))'; then
        echo "setup: no CPU build of torch for this Python can be reached; its CUDA build (about 4 GB more) does as well"
        install "$(pinned torch)" -c cluster/requirements/gpu.txt
    fi
else
    # Where pip knows a CPU build as well it takes that one, since 2.13.0+cpu counts as newer than 2.13.0: === means
    # this very version. With the CPU build, torchvision and with it transformers fail to import.
    install --no-deps "$(pinned torch | sed 's/==/===/')"
fi
install --no-deps -r "$lock"
# All cores at once, half the time of pip's own way. A few packages ship templates that are no Python.
"$VENV/bin/python" -m compileall -q -j 0 -x '/tests?/' "$VENV/lib" >/dev/null 2>&1 || true
stamp "$device" >"$STAMP.part"
mv "$STAMP.part" "$STAMP"
echo "setup: done in $SECONDS s"
