#!/usr/bin/env bash
# One directory with all that a study needs on a machine without network: this repository, packages, the data.
#
#   python examples/pack_dataset.py cifar10 --files --out cifar10.npz
#   launch/pack.sh cifar10.npz build/campaign
#
# There, in that directory, `launch/packed.sh STUDY` installs the packages and does the study. What is packed can be changed:
#   PACKAGES        what the machine lacks (default: of the dependencies, those that are not common beside JAX)
#   PYTHON_VERSION  of the machine (default: 3.12); PLATFORM its system (default: Linux on x86-64)
#   NEWEST          what it may have in an older version, packed without what that needs
#   MOST_MIB        the most that the directory may hold (default: 60)
set -euo pipefail
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo "usage: launch/pack.sh DATA.npz [DIRECTORY]; DATA.npz is written by examples/pack_dataset.py" >&2
  exit 2
fi
data=$(realpath "$1") out=$(realpath -m "${2:-build/campaign}")
cd "$(dirname "$0")/.."
if [ -e "$out" ] && [ ! -f "$out/.packed" ]; then
  echo "error: $out is there, and was not packed by this; name another directory" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out/data" "$out/wheels" "$out/.all"
touch "$out/.packed"

# The program, its tests and configs as they are now, new files too; the documentation stays here.
git ls-files -z --cached --others --exclude-standard -- loft_jax configs launch examples tests pyproject.toml README.md LICENSE |
  tar --create --null --files-from=- | tar --extract --directory "$out"
cp "$data" "$out/data/"

platforms=(--platform "${PLATFORM:-manylinux_2_28_x86_64}")
[ -n "${PLATFORM:-}" ] || platforms+=(--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
download() {
  python -m pip download -q --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" "$@"
}
# Resolved together with what they need, so that their versions fit; only what is asked for is kept.
read -ra packages <<<"${PACKAGES-pydantic pydantic-core annotated-types typing-inspection typing-extensions tensorboardX}"
read -ra newest <<<"${NEWEST-filelock orbax-checkpoint}"
[ ${#packages[@]} = 0 ] || download -d "$out/.all" "${packages[@]}"
[ ${#newest[@]} = 0 ] || download -d "$out/wheels" --no-deps "${newest[@]}"
for package in "${packages[@]}"; do
  mv "$out/.all/$(tr - _ <<<"$package" | tr '[:upper:]' '[:lower:]')"-*.whl "$out/wheels/"
done
rm -rf "$out/.all"

mib=$(du -sm "$out" | cut -f1)
echo "packed    $out: $mib MiB, $(du -sm "$out/data" | cut -f1) of them data, $(du -sm "$out/wheels" | cut -f1) packages"
if [ "$mib" -gt "${MOST_MIB:-60}" ]; then
  echo "error: that is more than ${MOST_MIB:-60} MiB; pack the data with --files, or allow more with MOST_MIB" >&2
  exit 1
fi
echo "there     cd $out && launch/packed.sh STUDY --budget SECONDS"
