"""Makes the golden folders beside it: small random models of every variant as transformers saves
them, ids and logits.

    python -m tests.models.make_golden

Needs torch. The models are those of the parity table (`experiments/parity/variants.py`).
"""

from pathlib import Path

from safetensors.numpy import save_file

from experiments.parity.variants import (
    NEWER,
    VARIANTS,
    random_ids,
    torch_logits,
    torch_model,
)

__all__ = ("FOLDER", "NEWER", "VARIANTS", "random_ids", "torch_logits", "torch_model")

FOLDER = Path(__file__).parent / "golden"


def main() -> None:
    """Writes all folders."""
    for seed, variant in enumerate(VARIANTS):
        model, ids = torch_model(variant, seed), random_ids(seed)
        model.save_pretrained(FOLDER / variant)
        save_file(
            {"ids": ids, "logits": torch_logits(model, ids)},
            FOLDER / variant / "golden.safetensors",
        )
        (FOLDER / variant / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
