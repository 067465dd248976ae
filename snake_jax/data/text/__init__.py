"""Text for language models: pairs of prompt and response, tokenizers, templates, packed rows."""
