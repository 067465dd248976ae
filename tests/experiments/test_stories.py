"""Stories are told apart by their marks."""

import gzip
import json

import pytest

from experiments.reproduction.stories import END, write_stories
from snake_jax.errors import UserError

TEXT = f"Once.\nThen.{END}\n\nTwice.\n{END}{END} Thr"


@pytest.mark.parametrize("name", ["stories.txt", "stories.txt.gz"])
def test_a_story_ends_with_its_mark_and_the_last_one_is_cut(tmp_path, name):
    source = tmp_path / name
    packed = TEXT.encode()
    source.write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    target = tmp_path / "stories.jsonl"
    assert write_stories(source, target) == 2
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert lines == [{"text": "Once.\nThen."}, {"text": "Twice."}]
    assert write_stories(source, target, limit=1) == 1
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("content", [None, b"no mark", b"\xff"])
def test_a_file_without_stories_is_one_line(tmp_path, content):
    source = tmp_path / "stories.txt"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=r"--stories=.*stories\.txt: "):
        write_stories(source, tmp_path / "stories.jsonl")
    assert not (tmp_path / "stories.jsonl").exists()
