"""Checkpoints: what was saved comes back bit for bit, or an earlier one does, never something
else.
"""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from snake_jax.errors import UserError
from snake_jax.runs.checkpoint import Checkpoints, Saved
from tests.helpers import same_bits
from tests.launches import arrays_of


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


def restore(folder, warn=pytest.fail, like=lambda meta: jax.eval_shape(lambda: tree(0))):
    return Checkpoints(folder).restore(like, warn)


def steps(folder):
    """The checkpoints that are there, and nothing else."""
    assert all(entry.suffix == ("" if entry.is_dir() else ".npz") for entry in folder.iterdir())
    return sorted(int(entry.stem) for entry in folder.iterdir())


def test_comes_back_as_it_was(tmp_path):
    save(tmp_path, 1)
    saved = restore(tmp_path)
    assert same_bits(saved.tree, tree(1))
    assert saved[::2] == (1, {"records": 1, "names": ["a"]})


def test_keeps_the_last_two_and_gives_the_newest(tmp_path):
    save(tmp_path, 1, 2, 3, 10)
    assert steps(tmp_path) == [3, 10]
    assert restore(tmp_path).rounds == 10


def test_none_yet(tmp_path):
    assert restore(tmp_path / "new" / "folder") is None


def test_saving_again_changes_nothing(tmp_path):
    save(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(1, tree(5), {}))
    assert same_bits(restore(tmp_path).tree, tree(1))


def test_what_a_kill_left_half_written_goes(tmp_path):
    save(tmp_path, 1, 2)
    half = (tmp_path / "2.npz").read_bytes()[:500]
    (tmp_path / "2.npz").unlink()
    (tmp_path / "2.npz.part").write_bytes(half)
    shutil.copytree(tmp_path / "1", tmp_path / "3.orbax-checkpoint-tmp")
    assert restore(tmp_path).rounds == 1
    assert steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert restore(tmp_path).rounds == 2


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.npz").write_text("mine")
    (tmp_path / "old").mkdir()
    assert restore(tmp_path).rounds == 2
    save(tmp_path, 3)
    assert {"notes.txt", "mine.npz", "old"} < {entry.name for entry in tmp_path.iterdir()}


def test_a_checkpoint_that_cannot_be_written_whole_is_none(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(1, tree(1), {"records": 1}))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(Saved(2, tree(2), {"records": 2}))
    assert not (tmp_path / "2.npz").exists()
    assert restore(tmp_path).rounds == 1


# Damage, to whole checkpoints (folders of orbax's) and to those of changes (archives of numpy's).


def files_of(checkpoint):
    """Of a checkpoint, from the largest."""
    if checkpoint.is_file():
        return [checkpoint]
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
    return sorted(files, key=lambda file: file.stat().st_size, reverse=True)


def flip(file, place=0.5):
    """One bit, at this share of the file."""
    content = bytearray(file.read_bytes())
    if content:
        content[int(len(content) * place)] ^= 1
        file.write_bytes(content)


def cut_short(checkpoint, length=100):
    largest = files_of(checkpoint)[0]
    largest.write_bytes(largest.read_bytes()[:length])


def emptied(checkpoint):
    for file in files_of(checkpoint):
        file.write_bytes(b"")


def without(name):
    """Rewrites a checkpoint of changes without one of the archive's members."""

    def damage(file):
        with np.load(file) as archive:
            left = {other: archive[other] for other in archive.files if other != name}
        np.savez(file, **left)

    return damage


DAMAGES = {
    "a bit flipped": lambda checkpoint: flip(files_of(checkpoint)[0]),
    "cut short": cut_short,
    "a byte short": lambda checkpoint: cut_short(checkpoint, -1),
    "all empty": emptied,
    "an array gone": without("00000"),
    "no meta": without("meta"),
}
WHOLE_DAMAGES = ["a bit flipped", "cut short", "all empty"]


def two(folder, kind):
    """Two checkpoints, the second of one kind, and where that lies."""
    if kind == "whole":
        save(folder, 1)
        save(folder, 2)
        return folder / "2"
    save(folder, 1, 2)
    return folder / "2.npz"


@pytest.mark.parametrize(
    ("kind", "how"),
    [*[("changes", how) for how in DAMAGES], *[("whole", how) for how in WHOLE_DAMAGES]],
)
def test_damage_is_said_in_one_line_and_the_one_before_is_used(kind, how, tmp_path, capfd):
    checkpoint = two(tmp_path, kind)
    DAMAGES[how](checkpoint)
    warnings = []
    saved = restore(tmp_path, warnings.append)
    (line,) = warnings
    assert line.startswith(f"checkpoint {checkpoint} is damaged and left out (")
    assert "\n" not in line
    assert capfd.readouterr() == ("", ""), "the libraries say nothing themselves"
    assert (saved.rounds, same_bits(saved.tree, tree(1))) == (1, True)
    assert steps(tmp_path) == [1], "out of the way of the next one of this number"


def test_a_flipped_bit_anywhere_never_comes_back_as_good(tmp_path):
    checkpoint = two(tmp_path, "changes")
    sound = checkpoint.read_bytes()
    places = np.linspace(0, 1, 60, endpoint=False)
    fallbacks = 0
    for place in places:
        checkpoint.write_bytes(sound)
        flip(checkpoint, place)
        saved = restore(tmp_path, lambda _: None)
        assert same_bits(saved.tree, tree(saved.rounds))
        assert saved.meta["records"] == saved.rounds
        fallbacks += saved.rounds == 1
    # What is not noticed is what says nothing, as the times of the archive's members.
    assert fallbacks > 0.9 * len(places)


def test_a_flipped_bit_in_any_file_of_a_whole_one_never_comes_back_as_good(tmp_path):
    two(tmp_path / "sound", "whole")
    fallbacks = 0
    for number in range(len(files_of(tmp_path / "sound" / "2"))):
        folder = shutil.copytree(tmp_path / "sound", tmp_path / str(number))
        flip(files_of(folder / "2")[number])
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
    for name in ("1", "2.npz"):
        cut_short(tmp_path / name)
    for _ in range(2):
        warnings = []
        with pytest.raises(UserError, match="give another --workdir"):
            restore(tmp_path, warnings.append)
        assert len(warnings) == 2
        assert steps(tmp_path) == [1, 2]


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
    """The arrays that a checkpoint itself holds."""
    whole = folder / str(step)
    names = arrays_of(whole if whole.exists() else folder / f"{step}.npz")
    return [name for name in names if name != "meta"]


def test_only_what_changed_is_written_and_all_of_it_comes_back(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    models = [layers(1, 2, 3), layers(1, 4, 3), layers(5, 4, 3), layers(5, 4, 3)]
    for number, model in enumerate(models, start=1):
        checkpoints.save(Saved(number, model, {"of": number}))
    assert [len(written(tmp_path, step)) for step in (1, 2, 3, 4)] == [3, 1, 1, 0]
    saved = restore(tmp_path, like=lambda meta: THREE)
    assert (saved.rounds, saved.meta) == (4, {"of": 4})
    assert same_bits(saved.tree, models[-1])


def test_arrays_are_found_again_whatever_their_place_in_the_tree(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Saved(1, layers(1, 2), {}))
    checkpoints.save(Saved(2, layers(7, 1, 2), {}))  # as where a node begins to remember something
    assert len(written(tmp_path, 2)) == 1
    assert same_bits(restore(tmp_path, like=lambda meta: THREE).tree, layers(7, 1, 2))


def test_what_nobody_reads_any_more_goes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 7):  # the first layer stays, the others change by turns
        model = layers(1, 10 + number // 2, 20 + (number + 1) // 2)
        checkpoints.save(Saved(number, model, {}))
    assert steps(tmp_path) == [1, 4, 5, 6]
    assert same_bits(restore(tmp_path, like=lambda meta: THREE).tree, model)


def test_a_generation_reads_nothing_of_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr("snake_jax.runs.checkpoint._GENERATION", 3)
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 9):
        checkpoints.save(Saved(number, layers(1, 2, 30 + number), {}))
    # 7 is whole; 8 reads it. 6 is the last of the generation before, and reads 4.
    assert [len(written(tmp_path, step)) for step in (4, 6, 7, 8)] == [3, 1, 3, 1]
    assert steps(tmp_path) == [4, 6, 7, 8]
    # So damage to what both of the newest read leaves that one.
    cut_short(tmp_path / "7")
    warnings = []
    saved = restore(tmp_path, warnings.append, like=lambda meta: THREE)
    assert (saved.rounds, len(warnings)) == (6, 2)
    assert same_bits(saved.tree, layers(1, 2, 36))
    assert steps(tmp_path) == [4, 6]


def test_a_run_that_goes_on_writes_a_whole_one_first(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.save(Saved(number, layers(1, 2, 40 + number), {}))
    again = Checkpoints(tmp_path)
    model = jax.device_put(again.restore(lambda meta: THREE, pytest.fail).tree)
    again.save(Saved(3, model, {}))
    again.save(Saved(4, model, {}))
    assert [len(written(tmp_path, step)) for step in (3, 4)] == [3, 0]
    assert steps(tmp_path) == [1, 2, 3, 4], "2 is the last of the generation before"
