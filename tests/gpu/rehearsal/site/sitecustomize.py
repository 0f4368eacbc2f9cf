"""With this folder first in PYTHONPATH, every Python that starts with REHEARSAL=1 pretends to have GPUs."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

if os.environ.get("REHEARSAL") == "1" and find_spec("torch") is not None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import guard

    library = guard.load()
    import pretended_cuda

    pretended_cuda.install(library)
