#!/usr/bin/env bash
# Build, test and measure on a machine with an NVIDIA GPU and no network, within 10 minutes.
#
# Uses what is there: torch, triton, pybind11, scikit-build-core, ninja, cmake, pytest, hypothesis, nvcc.
# Writes one record a stem, <gpu>/<stem>.json, into $OUT (default: bench/results). Exits with 1 if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-bench/results}
PYTHON=${PYTHON:-python3}
export GRAFTWORK_CUDA=ON PYTHONUNBUFFERED=1
[ -d /usr/local/cuda/bin ] && export PATH="$PATH:/usr/local/cuda/bin"

failed=0
step() { # step NAME SECONDS COMMAND...: run the command under a time limit and remember a failure
  local name=$1 seconds=$2 begun=$SECONDS
  shift 2
  echo "== $name"
  timeout --kill-after=5 "$seconds" "$@"
  local code=$?
  echo "== $name: exit code $code after $((SECONDS - begun)) s"
  if [ "$code" -ne 0 ]; then failed=1; fi
  return "$code"
}

step build 240 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps . || exit 1
step "CUDA module" 30 "$PYTHON" -c 'import torch; from graftwork import _cuda; assert _cuda.device_count() > 0' || exit 1
# -k cuda: the cases of the device fixture that run on the GPU. Having none of them is a failure too (exit code 5).
step tests 150 "$PYTHON" -m pytest -q -m "not slow" -k cuda tests/ops
for stem in lossless_delta; do
  step "bench $stem" 170 "$PYTHON" -m bench.run "$stem" --device cuda --results "$OUT"
done
exit "$failed"
