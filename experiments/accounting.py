"""`python -m experiments.accounting` is `snake-jax accounting`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("accounting")
