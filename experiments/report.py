"""The door to `snake_jax.cli.report`: report on many runs: one HTML page with table, curves,
schedule, ledger and configuration.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("snake_jax.cli.report", run_name="__main__", alter_sys=True)
