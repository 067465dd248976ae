"""`python -m experiments.finetune` is `snake-jax finetune`."""

from snake_jax.cli.main import door

if __name__ == "__main__":
    door("finetune")
