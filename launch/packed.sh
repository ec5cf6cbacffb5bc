#!/usr/bin/env bash
# Does a study in a directory that launch/pack.sh has packed, on a machine without network.
#
#   launch/packed.sh cifar10_one_gpu --budget 560
#
# Run it again to go on. Results are in results/; those that are small are also in results.tar.gz, which is copied into
# $OUT if that is set. To go on in another copy of the directory, unpack that file in it first.
# PYTHON is the Python to use (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ $# -lt 1 ]; then
  echo "usage: launch/packed.sh STUDY [--budget SECONDS] [further options of python -m loft_jax.study]" >&2
  exit 2
fi
study=$1
shift
if [ ! -d packages ]; then
  rm -rf packages.tmp
  mkdir packages.tmp
  for wheel in wheels/*.whl; do
    [ ! -f "$wheel" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target packages.tmp "$wheel"
  done
  mv packages.tmp packages
fi
export PYTHONPATH="$PWD:$PWD/packages${PYTHONPATH:+:$PYTHONPATH}" LOFT_JAX_CACHE="${LOFT_JAX_CACHE:-$PWD/cache}"

# Now and then, because a machine that is lent may be taken away at any time.
collect() {
  [ -f results/results.jsonl ] || return 0
  tar --create --gzip --file results.tmp --exclude checkpoints --exclude snapshots --exclude 'events.out.*' \
    --exclude '.*lock*' --exclude '*.safetensors' results || [ $? = 1 ] # 1: a file has grown meanwhile
  mv results.tmp results.tar.gz
  if [ -n "${OUT:-}" ]; then cp results.tar.gz results/results.jsonl results/results.csv "$OUT/"; fi
}
while sleep 20; do collect; done &
trap 'kill $!; collect; du -k results.tar.gz' EXIT
"$python" -m loft_jax.study --config "$study" --workdir results "$@"
