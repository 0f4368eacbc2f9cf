#!/usr/bin/env bash
# Snakemake runs this once in the new environment, as a copy beside it: $0 does not lead to the checkout, the working
# directory does. Linked (--editable), because the environment is not made anew when the package changes.
set -euo pipefail
if [[ ! -f pyproject.toml || ! -d workflow/megavoxel ]]; then
    echo "$PWD is no checkout of megavoxel: run 'snakemake --sdm conda' from the root of the checkout" >&2
    exit 1
fi
# Nothing to do where megavoxel.yaml was read; a pin file beside it stands for that file, and names no packages of pip.
python -m pip install --disable-pip-version-check --requirement requirements.lock
python -m pip install --disable-pip-version-check --no-deps --editable .
