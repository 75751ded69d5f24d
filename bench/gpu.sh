#!/usr/bin/env bash
# All that is measured of the kernels on a GPU, in one command; see bench/kernels/__init__.py.
#
#   bash bench/gpu.sh                                   everything, within --limit 540 seconds
#   bash bench/gpu.sh --steps correctness               or in calls of under ten minutes each:
#   bash bench/gpu.sh --steps time,peers
#   bash bench/gpu.sh --steps tune --space module:function
#   bash bench/gpu.sh --dry-run                         without a GPU, tiny, on Triton's interpreter
#   bash bench/gpu.sh --fetch                           where there is a registry: other libraries' wheels into .peers/
#
# A machine that is lent for ten minutes at a time and has no registry needs .peers/ carried along (52 MiB).
# Steps: tests (pytest -m "gpu and not slow"), correctness, time, peers, tune. What is in .peers/ is installed aside, into $SITE.
# Results go to bench/results/ and, after every step, to $OUT if that is set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PEERS=.peers
SITE=${SITE:-${TMPDIR:-/tmp}/mhc-peers}
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

fetch() {
    mkdir -p "$PEERS"
    local platforms=()
    for glibc in 2014_x86_64 _2_17_x86_64 _2_24_x86_64 _2_27_x86_64 _2_28_x86_64 _2_34_x86_64; do
        platforms+=(--platform "manylinux$glibc")
    done
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${platforms[@]}" -d "$PEERS" -r bench/kernels/peers/peers.txt
    "$PYTHON" -m bench.kernels.wheels "$PEERS"
}

# Each on its own: one that is missing leaves the others.
install_peers() {
    compgen -G "$PEERS/*.whl" >/dev/null || { echo "no wheels in $PEERS/: bash bench/gpu.sh --fetch"; return 0; }
    local requirement
    while read -r requirement; do
        [[ -z $requirement || $requirement == \#* ]] && continue
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --find-links "$PEERS" \
            --upgrade --target "$SITE" "$requirement" || echo "not installed: $requirement"
    done <bench/kernels/peers/peers.txt
    export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
}

show_machine() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv,noheader
        MHC_DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
        export MHC_DRIVER
    fi
    "$PYTHON" -c 'import sys, torch, triton
print("python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__, "cuda", torch.version.cuda)'
}

run_tests() {
    local marked side_by_side=()
    mapfile -t marked < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests)
    ((${#marked[@]})) || { echo "no tests are marked gpu"; return 0; }
    "$PYTHON" -c 'import xdist' 2>/dev/null && side_by_side=(-n "$((($(nproc) + 1) / 2))")
    "$PYTHON" -c 'import importlib.metadata as found; found.version("mhc_compile")' 2>/dev/null ||
        "$PYTHON" -m pip install -q --no-index --no-deps --no-build-isolation -e .  # for the backend's name
    timeout "$((limit / 3))" "$PYTHON" -m pytest -q -m "gpu and not slow" "${side_by_side[@]}" "${marked[@]}" || echo "tests: exit status $?"
}

steps=tests,correctness,time,peers,tune
limit=540
dry=
rest=()
while (($#)); do
    case $1 in
        --fetch) fetch; exit ;;
        --dry-run) dry=1; rest+=("$1") ;;
        --steps) steps=$2; shift ;;
        --limit) limit=$2; shift ;;
        *) rest+=("$1") ;;
    esac
    shift
done

show_machine
if [[ -z $dry ]]; then
    [[ ,$steps, == *,peers,* ]] && install_peers
    [[ ,$steps, == *,tests,* ]] && run_tests
fi
steps=$(tr , '\n' <<<"$steps" | grep -vx tests | paste -sd, || true)
[[ -z $steps ]] || "$PYTHON" -m bench.kernels --steps "$steps" --limit "$((limit - SECONDS))" "${rest[@]}"
