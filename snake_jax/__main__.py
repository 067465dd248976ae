"""`python -m snake_jax` is `snake-jax`."""

from snake_jax.cli.main import main

if __name__ == "__main__":
    main()
