"""The door to `snake_jax.cli.classify`: trains an image classifier over nodes that each hold their
own data, and reports what it cost.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.classify", run_name="__main__", alter_sys=True)
