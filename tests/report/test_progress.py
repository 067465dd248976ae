"""The progress line and TensorBoard's events."""

import io
import math
import sys
from types import SimpleNamespace

from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from snake_jax.algorithms.visits import Visit
from snake_jax.engines.contract import Progress
from snake_jax.report import progress as progress_module
from snake_jax.report.progress import progress, progress_text
from snake_jax.report.tensorboard import tensorboard
from tests.run_folders import image_line

BEATS = [Progress(Visit(4, 0, 1, ("a",)), 1700, 12.0, 0.5, 10**8)]
BEAT = "node 1: step 1,700 in 12 s, load 0.5, 100 MB"


def test_plain_progress_is_a_line_a_visit(capsys):
    with progress(6, done=4) as (update, _):
        update(image_line(0))
        update(image_line(1, loss=None, event="interrupted", distilled=True, node=[0, 1]))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "visit 5/6  loss 2.000  accuracy 20.0 %  node 0  conv1,conv2,fc  left 0:"
    )
    assert second == "visit 6/6  2 nodes  conv1,conv3,fc  distilled  interrupted  left 0:00"


def test_plain_progress_says_how_far_a_long_visit_is_once_a_minute(capsys, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now_s[0])
    with progress(6, done=4) as (update, beat):
        for now_s[0] in (150.0, 161.0, 162.0, 220.0, 222.0):
            beat(BEATS)
        beat([])
        update(image_line(0))
        now_s[0] = 283.0
        beat([])
        beat([BEATS[0]._replace(compiling=True)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"visit 5/6  {BEAT}"] * 2
    assert lines[2].startswith("visit 5/6  loss 2.000")
    assert lines[3:] == ["visit 6/6  node 1: compiling in 12 s, load 0.5, 100 MB"]


def test_progress_can_be_silent(capsys):
    with progress(2, enabled=False) as (update, beat):
        update(image_line(0))
        beat(BEATS)
    assert capsys.readouterr().out == ""


def test_progress_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(
        progress_module,
        "Console",
        lambda file: Console(file=screen, force_terminal=True, width=160, color_system=None),
    )
    with progress(3, unit="round") as (update, beat):
        update(image_line(0, layers=list("abcde")))
        beat(BEATS)
    drawn = screen.getvalue()
    assert "round 1/3" in drawn
    assert "loss 2.000  accuracy 20.0 %  node 0  5 layers" in drawn
    assert f"{BEAT} | loss 2.000" in drawn


def test_progress_text_leaves_out_what_is_not_there():
    assert progress_text({}) == ""
    assert progress_text({"node": [4], "loss": math.nan}) == "loss nan  1 node"


def events(folder):
    """(step, tag, value) of a TensorBoard event file: length, checksum, message, checksum, and so
    on.
    """
    (path,) = folder.glob("events.*")
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    return found


def test_tensorboard_writes_each_number_at_its_iteration(tmp_path):
    with tensorboard(tmp_path, iterations=100) as write:
        write(image_line(0))
        write(image_line(1))
    found = events(tmp_path)
    assert [(step, value) for step, tag, value in found if tag == "loss"] == [
        (110, 2.0),
        (120, 1.0),
    ]
    assert [step for step, tag, _ in found if tag == "accuracy"] == [110], "null is not drawn"
    assert not {"layers", "event", "test_loss"} & {tag for _, tag, _ in found}
