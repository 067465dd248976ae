"""`python -m experiments.generate` is `snake-jax generate`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("generate")
