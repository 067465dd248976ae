"""`python -m experiments.profile` is `snake-jax profile`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("profile")
