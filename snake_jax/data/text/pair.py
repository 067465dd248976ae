"""What text data is made of: a prompt, its response, and the group that both belong to."""

from typing import NamedTuple


class Pair(NamedTuple):
    """One training or test example: the model reads `prompt` and is to write `response`."""

    prompt: str
    response: str
    category: str = ""
