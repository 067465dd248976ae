"""`python -m experiments.classify` is `snake-jax classify`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("classify")
