#!/usr/bin/env bash
# Snakemake runs a copy of this file once in the new environment. The checkout is the working directory, not the folder of
# $0. The package is linked (--editable), because the environment stays when the package changes.
set -euo pipefail
if [[ ! -f pyproject.toml || ! -d workflow/megavoxel ]]; then
    echo "$PWD is no checkout of megavoxel: run 'snakemake --sdm conda' from the root of the checkout" >&2
    exit 1
fi
# These are already there if megavoxel.yaml was installed, but not if a pin file was, which has no packages of pip.
python -m pip install --disable-pip-version-check --no-deps --require-hashes --requirement requirements-hashed.lock
python -m pip install --disable-pip-version-check --requirement requirements.lock
python -m pip install --disable-pip-version-check --no-deps --editable .
