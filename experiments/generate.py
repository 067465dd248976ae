"""The door to `snake_jax.cli.generate`: says what a language model answers: after fine-tuning, or
before.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.generate", run_name="__main__", alter_sys=True)
