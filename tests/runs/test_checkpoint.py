"""Checkpoints: what was saved comes back bit for bit, or an earlier one does, never something
else.
"""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.runs.checkpoint import Checkpoints, Saved
from tests.helpers import same_bits


class Pair(NamedTuple):
    weights: dict
    count: jax.Array


def tree(seed):
    """Several containers, types and shapes, big enough for a file of its own."""
    key = jax.random.key(seed)
    weights = {
        "kernel": jax.random.normal(key, (40, 50)),
        "half": jnp.full((3,), seed, jnp.bfloat16),
    }
    return (Pair(weights, jnp.int32(seed)), [jnp.float32(seed)], {})


def save(folder, *rounds):
    checkpoints = Checkpoints(folder)
    for number in rounds:
        checkpoints.save(Saved(number, tree(number), {"records": number, "names": ["a"]}))
    checkpoints.close()


def restore(folder, warn=pytest.fail, like=lambda meta: jax.eval_shape(lambda: tree(0))):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(like, warn)
    finally:
        checkpoints.close()


def steps(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_comes_back_as_it_was(tmp_path):
    save(tmp_path, 1)
    saved = restore(tmp_path)
    assert same_bits(saved.tree, tree(1))
    assert saved[::2] == (1, {"records": 1, "names": ["a"]})


def test_keeps_the_last_two_and_gives_the_newest(tmp_path):
    save(tmp_path, 1, 2, 3, 10)
    assert steps(tmp_path) == ["10", "3"]
    assert restore(tmp_path).rounds == 10


def test_none_yet(tmp_path):
    assert restore(tmp_path / "new" / "folder") is None


def test_saving_again_changes_nothing(tmp_path):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(1, tree(5), {}))
    checkpoints.close()
    assert same_bits(restore(tmp_path).tree, tree(1))


def test_what_a_kill_left_half_written_goes(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    assert restore(tmp_path).rounds == 1
    assert steps(tmp_path) == ["1"]
    save(tmp_path, 2)
    assert restore(tmp_path).rounds == 2


def largest(checkpoint):
    return max(
        (file for file in checkpoint.rglob("*") if file.is_file()),
        key=lambda file: file.stat().st_size,
    )


def flip(file):
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


DAMAGES = {
    "a bit flipped": lambda checkpoint: flip(largest(checkpoint)),
    "cut short": lambda checkpoint: largest(checkpoint).write_bytes(
        largest(checkpoint).read_bytes()[:100]
    ),
    "a file gone": lambda checkpoint: largest(checkpoint).unlink(),
    "all files empty": lambda checkpoint: [
        f.write_bytes(b"") for f in checkpoint.rglob("*") if f.is_file()
    ],
    "no arrays": lambda checkpoint: shutil.rmtree(checkpoint / "arrays"),
    "no meta": lambda checkpoint: shutil.rmtree(checkpoint / "meta"),
    "nothing left": lambda checkpoint: [
        shutil.rmtree(checkpoint / part) for part in ("arrays", "meta")
    ],
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_said_in_one_line_and_the_one_before_is_used(how, tmp_path, capfd):
    save(tmp_path, 1, 2)
    DAMAGES[how](tmp_path / "2")
    warnings = []
    saved = restore(tmp_path, warnings.append)
    (line,) = warnings
    assert line.startswith(f"checkpoint {tmp_path / '2'} is damaged and left out (")
    assert "\n" not in line
    assert capfd.readouterr() == ("", ""), "the storage library says nothing itself"
    assert (saved.rounds, same_bits(saved.tree, tree(1))) == (1, True)
    assert steps(tmp_path) == ["1"], "out of the way of the next one of this number"


def test_a_flipped_bit_anywhere_never_comes_back_as_good(tmp_path):
    save(tmp_path / "whole", 1, 2)
    count = sum(file.is_file() for file in (tmp_path / "whole" / "2").rglob("*"))
    fallbacks = 0
    for number in range(count):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        flip([file for file in sorted((folder / "2").rglob("*")) if file.is_file()][number])
        saved = restore(folder, lambda _: None)
        assert same_bits(saved.tree, tree(saved.rounds))
        assert saved.meta["records"] == saved.rounds
        fallbacks += saved.rounds == 1
    assert fallbacks > 2


def test_arrays_of_other_shapes_are_not_taken(tmp_path):
    save(tmp_path, 1)
    warnings = []
    other = (Pair({"half": np.zeros(3), "kernel": np.zeros(3)}, np.int32(0)), [np.float32(0)], {})
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read"):
        restore(tmp_path, warnings.append, like=lambda meta: other)
    assert "damaged" in warnings[0]


def test_where_none_can_be_read_all_are_left_as_they_are(tmp_path):
    save(tmp_path, 1, 2)
    for number in ("1", "2"):
        DAMAGES["cut short"](tmp_path / number)
    for _ in range(2):
        warnings = []
        with pytest.raises(UserError, match="give another --workdir"):
            restore(tmp_path, warnings.append)
        assert len(warnings) == 2
        assert steps(tmp_path) == ["1", "2"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints cannot be used"):
        Checkpoints(tmp_path / "checkpoints")


# What changed


def layers(*seeds):
    """A model of one-array layers; equal seeds are the very same arrays."""
    return [
        _LAYERS.setdefault(seed, jax.random.normal(jax.random.key(seed), (8,))) for seed in seeds
    ]


_LAYERS: dict[int, jax.Array] = {}
THREE = [jax.ShapeDtypeStruct((8,), jnp.float32)] * 3


def written(folder, step):
    """The arrays that a checkpoint itself holds, by orbax's own description."""
    file = folder / str(step) / "arrays" / "_METADATA"
    if not file.exists():
        return []
    return sorted(json.loads(file.read_text())["tree_metadata"])


def test_only_what_changed_is_written_and_all_of_it_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    models = [layers(1, 2, 3), layers(1, 4, 3), layers(5, 4, 3), layers(5, 4, 3)]
    for number, model in enumerate(models, start=1):
        checkpoints.save(Saved(number, model, {"of": number}))
    assert [len(written(tmp_path, step)) for step in (1, 2, 3, 4)] == [3, 1, 1, 0]
    checkpoints.close()
    saved = restore(tmp_path, like=lambda meta: THREE)
    assert (saved.rounds, saved.meta) == (4, {"of": 4})
    assert same_bits(saved.tree, models[-1])


def test_arrays_are_found_again_whatever_their_place_in_the_tree(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(1, layers(1, 2), {}))
    checkpoints.save(Saved(2, layers(7, 1, 2), {}))  # as where a node begins to remember something
    checkpoints.close()
    assert len(written(tmp_path, 2)) == 1
    assert same_bits(restore(tmp_path, like=lambda meta: THREE).tree, layers(7, 1, 2))


def test_what_nobody_reads_any_more_goes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 7):  # the first layer stays, the others change by turns
        model = layers(1, 10 + number // 2, 20 + (number + 1) // 2)
        checkpoints.save(Saved(number, model, {}))
    checkpoints.close()
    assert steps(tmp_path) == ["1", "4", "5", "6"]
    assert same_bits(restore(tmp_path, like=lambda meta: THREE).tree, model)


def test_a_generation_reads_nothing_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr("snake_jax.runs.checkpoint._GENERATION", 3)
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 9):
        checkpoints.save(Saved(number, layers(1, 2, 30 + number), {}))
    checkpoints.close()
    # 7 is whole; 8 reads it. 6 is the last of the generation before, and reads 4.
    assert [len(written(tmp_path, step)) for step in (4, 6, 7, 8)] == [3, 1, 3, 1]
    assert steps(tmp_path) == ["4", "6", "7", "8"]
    # So damage to what both of the newest read leaves that one.
    flip(largest(tmp_path / "7"))
    warnings = []
    saved = restore(tmp_path, warnings.append, like=lambda meta: THREE)
    assert (saved.rounds, len(warnings)) == (6, 2)
    assert same_bits(saved.tree, layers(1, 2, 36))
    assert steps(tmp_path) == ["4", "6"]


def test_a_run_that_goes_on_writes_a_whole_one_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(Saved(number, layers(1, 2, 40 + number), {}))
    checkpoints.close()
    again = Checkpoints(tmp_path)
    model = jax.device_put(again.restore(lambda meta: THREE, pytest.fail).tree)
    again.save(Saved(3, model, {}))
    again.save(Saved(4, model, {}))
    again.close()
    assert [len(written(tmp_path, step)) for step in (3, 4)] == [3, 0]
    assert steps(tmp_path) == ["1", "2", "3", "4"], "2 is the last of the generation before"
