#!/usr/bin/env bash
# Train in N processes on this machine, connected by loopback:
#
#   launch/local.sh 2 --config configs/digits.yaml --workdir runs/two_processes --mesh.cpu_devices 2
#
# Options after N are given to python -m loft_jax.train unchanged. SIGTERM, SIGHUP and Ctrl-C (save, then stop) are sent
# to all processes; if this script is killed, they save and stop too. The exit code is 0, or that of the first process (by
# number) that failed; if one dies, the others stop by themselves. Environment variables: PYTHON (default: python);
# LOFT_JAX_PORT (default: any free port).
# Use it for virtual CPU devices only: each process would take all GPUs, and one process can use all of them by itself.
set -euo pipefail

python=${PYTHON:-python}
processes=${1:-}
if ! [[ $processes =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "error: N='$processes': must be a whole number from 1 to 9999, the number of processes; try" \
    "launch/local.sh 2 --config FILE --workdir RUN" >&2
  exit 2
fi
shift
if ! command -v "$python" >/dev/null; then
  echo "error: PYTHON='$python': no such program; activate the environment of loft_jax, or set PYTHON to its Python" >&2
  exit 2
fi
port=${LOFT_JAX_PORT:-$("$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')}

pids=()
caught=""
# shellcheck disable=SC2329  # the traps call it
forward() {
  caught=$1
  kill -s "$1" "${pids[@]}" 2>/dev/null || true
}
for name in TERM INT HUP; do
  # shellcheck disable=SC2064  # each its own
  trap "forward $name" "$name"
done

# It reads the numbers of the processes. If this script is killed, its end of the pipe closes.
exec {alive}> >(
  exec >/dev/null 2>&1
  trap '' HUP INT TERM
  started=()
  while read -r pid; do
    [ "$pid" != end ] || exit 0
    started+=("$pid")
  done
  kill -s TERM "${started[@]}"
)

# With job control each process has its own process group; otherwise bash starts it with SIGINT ignored.
set -m
for ((i = 0; i < processes; i++)); do
  train=("$python" -m loft_jax.train --distributed.coordinator "127.0.0.1:$port"
    --distributed.processes "$processes" --distributed.process_id "$i")
  "${train[@]}" "$@" {alive}>&- &
  pids+=("$!")
  echo "$!" >&"$alive"
done
set +m
# A signal that came while processes were being started has not reached the later ones.
[ -z "$caught" ] || forward "$caught"

first=0
for i in "${!pids[@]}"; do
  # A signal makes `wait` return before the process has ended: wait again.
  code=0 caught=""
  wait "${pids[i]}" || code=$?
  while [ -n "$caught" ]; do
    code=0 caught=""
    wait "${pids[i]}" || code=$?
  done
  [ "$code" = 0 ] || echo "launch/local.sh: process $i of $processes ended with exit code $code" >&2 || true
  [ "$first" != 0 ] || first=$code
done
echo end >&"$alive"
exit "$first"
