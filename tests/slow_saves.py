"""The program with checkpoints that take a while to be written: python -m tests.slow_saves ..."""

import time

from snake_jax.cli import main
from snake_jax.runs.checkpoint import Checkpoints

SECONDS = 3.0
_save = Checkpoints.save


def _save_slowly(self, saved):
    time.sleep(SECONDS)
    _save(self, saved)


if __name__ == "__main__":
    Checkpoints.save = _save_slowly
    main.main()
