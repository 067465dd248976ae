"""`python -m experiments.scct` is `snake-jax scct`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("scct")
