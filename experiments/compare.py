"""The door to `snake_jax.cli.compare`: compare runs: accuracy or perplexity beside what it cost in
FLOPs, memory, bytes and time.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.compare", run_name="__main__", alter_sys=True)
