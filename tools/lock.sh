#!/usr/bin/env bash
# Write requirements.lock anew from pyproject.toml: every dependency of the demo, dev, local, peers, ray and remote extras and of
# the group steering-peers, with its hashes.
#
#   tools/lock.sh              keep the versions that still fit
#   tools/lock.sh --upgrade    take the newest that fit (any option of `uv pip compile` is passed on)
#
# torch is left out: it is installed first, by version, so that the machine's own build (CPU or CUDA) serves. Its
# requirements are stated below instead of read from a wheel, so that the file is the same whichever build is at hand,
# and nothing of CUDA is looked up or written. pip comes with every virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-uv}
command -v "$UV" >/dev/null || { echo "tools/lock.sh: uv is needed (pip install uv), or name it: UV=path/to/uv" >&2; exit 1; }

torch=${TORCH_VERSION:-2.13.0}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat >"$scratch/uv.toml" <<TOML
[[dependency-metadata]]
name = "torch"
version = "$torch"
requires-dist = ["filelock", "fsspec>=0.8.5", "jinja2", "networkx>=2.5.1", "setuptools>=77.0.3", "sympy>=1.13.3", "typing-extensions>=4.10.0"]

[[dependency-metadata]]
name = "repeng"
version = "0.4.0"
requires-dist = ["gguf", "numpy", "scikit-learn", "torch", "tqdm", "transformers"]

[[dependency-metadata]]
name = "steering-vectors"
version = "0.12.2"
requires-dist = ["scikit-learn", "torch", "tqdm", "transformers"]
TOML
echo "torch==$torch" >"$scratch/constraints.txt"

# uv reads the places that pip finds packages at from its own variables; pip's stay on this machine, out of the file.
export UV_FIND_LINKS=${UV_FIND_LINKS-${PIP_FIND_LINKS-}}
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS

"$UV" pip compile pyproject.toml --extra demo --extra dev --extra local --extra peers --extra ray --extra remote \
  --group steering-peers \
  --config-file "$scratch/uv.toml" --constraints "$scratch/constraints.txt" \
  --generate-hashes --universal --fork-strategy fewest --python-version 3.11 \
  --no-emit-package torch --no-emit-package pip \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
  --output-file requirements.lock --quiet "$@"

if grep -nE '://|^(torch|triton|nvidia-|cuda-)[^ ]*==' requirements.lock; then
  echo "tools/lock.sh: the lines above may not stand in requirements.lock" >&2
  exit 1
fi
echo "requirements.lock: $(grep -c '==' requirements.lock) packages, for torch==$torch"
