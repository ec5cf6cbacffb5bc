#!/usr/bin/env bash
# Train on all workers of a Cloud TPU slice:
#
#   export TPU_NAME=my-v5e-16 ZONE=us-west4-a WORKDIR=/mnt/runs/x
#   INSTALL=1 launch/tpu_pod.sh --config configs/imagenet_preresnet18_loft4.yaml --data.data_dir /mnt/data --mesh.data 4
#
# TPU_NAME, ZONE  the slice, which must exist; the project is that of `gcloud config`
# WORKDIR         run directory on the workers, on storage that all of them have mounted (a bucket through Cloud Storage
#                 FUSE, or NFS): every worker writes its part of a checkpoint there
# INSTALL=1       first copies the committed files of this checkout to ~/loft_jax on every worker, and installs them
#                 with '.[tpu,tfds]' in ~/loft_jax/.venv; needed once per slice, and after every change. python3 on the
#                 workers must be 3.11 or newer
#
# Run it from the top of the checkout. Paths in the options are paths on the workers, relative to ~/loft_jax. If the
# connection may break, run it in tmux. To save and stop, or before deleting the slice:
#   gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command 'pkill -TERM -f [l]oft_jax.train'
# Run the same command again to resume, also on a new slice after a preemption.
set -euo pipefail
: "${TPU_NAME:?must be set: the name of the TPU slice}"
: "${ZONE:?must be set: the zone of the TPU slice, as in us-west4-a}"
: "${WORKDIR:?must be set: the run directory, on storage that all workers share}"
if [[ $WORKDIR != /* ]]; then
  echo "error: WORKDIR=$WORKDIR: must be an absolute path on storage that all workers share" >&2
  exit 2
fi
command -v gcloud >/dev/null || { echo "error: gcloud is not on the PATH; install the Google Cloud CLI" >&2; exit 2; }

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command "$1"
}

if [ "${INSTALL:-0}" = 1 ]; then
  archive=$(mktemp -d)/loft_jax.tar.gz
  trap 'rm -rf "$(dirname "$archive")"' EXIT
  git archive --output "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:" --zone "$ZONE" --worker=all
  on_all_workers "mkdir -p loft_jax && tar -xzf loft_jax.tar.gz -C loft_jax && cd loft_jax &&
    python3 -m venv .venv && .venv/bin/python -m pip install -q '.[tpu,tfds]'"
fi

# Quote again, because the shell of the workers splits the command once more.
quoted=$(printf '%q ' "$WORKDIR" "$@")
on_all_workers "cd loft_jax && exec .venv/bin/python -m loft_jax.train --distributed auto --workdir $quoted"
