import os

from megavoxel.cli import main

if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from megavoxel.distributed.failures import run_member

        run_member(main)
    raise SystemExit(main())
