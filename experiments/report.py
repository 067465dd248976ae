"""`python -m experiments.report` is `snake-jax report`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("report")
