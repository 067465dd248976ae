"""The door to `snake_jax.cli.profile`: what training takes of a node: by formula, by the compiler
of a chip that need not be here, and measured.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.profile", run_name="__main__", alter_sys=True)
