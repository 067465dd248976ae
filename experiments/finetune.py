"""The door to `snake_jax.cli.finetune`: fine-tunes a language model over nodes that each hold their
own text, and reports what it cost.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.finetune", run_name="__main__", alter_sys=True)
