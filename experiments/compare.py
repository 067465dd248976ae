"""`python -m experiments.compare` is `snake-jax compare`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("compare")
