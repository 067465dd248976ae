"""An adapter as a repository of the Hugging Face hub holds it: a folder to push, made offline."""

from collections.abc import Mapping
from pathlib import Path

# What a repository on the hub keeps as large files.
_ATTRIBUTES = """\
*.safetensors filter=lfs diff=lfs merge=lfs -text
tokenizer.json filter=lfs diff=lfs merge=lfs -text
tokenizer.model filter=lfs diff=lfs merge=lfs -text
"""


def write_card(
    folder: Path,
    base: str,
    datasets: tuple[str, ...],
    method: str,
    flags: Mapping[str, object],
    results: Mapping[str, float | None],
) -> Path:
    """Writes README.md, the card, and .gitattributes beside an adapter.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors.
      base: name of the base model.
      datasets: what it was trained on; those with an owner (`OWNER/NAME`) are the hub's.
      method: of training.
      flags: of the run.
      results: figures of the held-out text.

    Returns:
      The card.
    """
    name = Path(base).name or base
    front = ["---", f"base_model: {_quoted(base)}", "library_name: peft"]
    front += ["pipeline_tag: text-generation", "tags:", "- lora", "- snake-jax"]
    of_hub = [source for source in datasets if "/" in source]
    if of_hub:
        front += ["datasets:", *[f"- {_quoted(source)}" for source in of_hub]]
    front.append("---")

    # What it is and how to load it.
    body = [
        f"# Adapter of {name}",
        f"A LoRA adapter for `{base}`, fine-tuned with the method `{method}` of snake_jax: "
        "layer-wise distributed learning.",
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(model, "THIS_FOLDER")\n```',
        "## Data",
        "\n".join(f"- {source}" for source in datasets),
    ]

    # How it was made, and what came of it.
    known = {figure: value for figure, value in results.items() if value is not None}
    if known:
        rows = [f"| {figure} | {value:.4g} |" for figure, value in known.items()]
        body += ["## Held-out text", "\n".join(["| figure | value |", "| --- | ---: |", *rows])]
    command = " \\\n    ".join(["snake-jax finetune", *_words(flags)])
    body += ["## Flags", f"```\n{command}\n```"]
    (folder / ".gitattributes").write_text(_ATTRIBUTES)
    card = folder / "README.md"
    card.write_text("\n".join(front) + "\n\n" + "\n\n".join(body) + "\n")
    return card


def _words(flags: Mapping[str, object]) -> list[str]:
    found = []
    for name, value in flags.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        found.append(f"--{name}={text}")
    return found


def _quoted(text: str) -> str:
    """A text of YAML."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
