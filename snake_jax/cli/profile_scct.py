"""Carries out `snake-jax profile --algorithm=scct`: memory and FLOPs of device, edge and cloud."""

import csv
import io
import json
from pathlib import Path

from absl.flags import FlagValues

from snake_jax.errors import UserError
from snake_jax.models import encoder as encoders
from snake_jax.models import hub, language, presets
from snake_jax.profiling.tables import Section, markdown_table, text_table
from snake_jax.report.units import human
from snake_jax.scct.system.profile import PlaceRow, SystemWork, rows
from snake_jax.scct.system.settings import SystemSettings

_HEAD = ["split", "place", "parameters", "that train", "state", "kept", "FLOPs", "sent"]
# What says nothing to this method.
_REFUSED = (
    "train",
    "frozen_dtype",
    "target",
    "fits",
    "spare",
    "plot",
    "distill",
    "mesh",
    "recompute",
    "frozen_matmul",
    "packing",
    "compute_dtype",
    "cut",
    "tail",
    "snake_length",
)


def run(flags: FlagValues, line: str) -> None:
    """Prints the table.

    Args:
      flags: of `profile`.
      line: the command as it was typed.

    Raises:
      UserError: a flag says nothing to SCCT, or a model is not there.
    """
    for name in _REFUSED:
        if flags[name].present:
            raise UserError(f"--{name}: says nothing to --algorithm=scct; leave it out")
    work = _work(flags)
    found = rows(work)
    if flags.layers != "all":
        found = _chosen(flags.layers, found, work.encoder.num_blocks)
    if flags.format == "json":
        print(json.dumps({"command": line, "rows": [row._asdict() for row in found]}, indent=1))
    elif flags.format == "csv":
        print(_csv(found), end="")
    else:
        written = markdown_table if flags.format == "markdown" else text_table
        print(written(_section(work, found)))


def _work(flags: FlagValues) -> SystemWork:
    """What is asked for; where a flag is empty, as in a run."""
    usual = SystemSettings()
    if flags.model in presets.PRESETS:
        model = presets.from_preset(flags.model)
    elif Path(flags.model).is_dir():
        model = language.build(hub.read_architecture(Path(flags.model)))
    else:
        raise UserError(
            f"--model={flags.model}: of scct the large model: a folder with config.json, or one of "
            f"{', '.join(presets.PRESETS)}"
        )
    return SystemWork(
        encoder=encoders.encoder(flags.small_model),
        model=model,
        nodes=flags.nodes or usual.nodes,
        batch=flags.batch_size or usual.batch_size,
        length=flags.max_length or 384,
        answer=usual.max_answer,
        adapter_width=usual.adapter_width,
        optimizer=flags.optimizer or usual.optimizer,
    )


def _chosen(words: str, found: list[PlaceRow], blocks: int) -> list[PlaceRow]:
    """The rows of some split points, and the cloud's."""
    wanted = set()
    for word in words.split(","):
        if not word.strip().isdecimal() or not 1 <= int(word) <= blocks:
            raise UserError(f"--layers={words}: of scct split points, 1 to {blocks}, or all")
        wanted.add(int(word))
    return [row for row in found if row.split in wanted or row.place == "cloud"]


def _section(work: SystemWork, found: list[PlaceRow]) -> Section:
    """For people."""
    lines = []
    for row in found:
        split = str(row.split) if row.split else "any"
        cells = [human(row.params), human(row.trained), human(row.state_bytes, "B")]
        cells += [human(row.kept_bytes, "B"), human(row.flops, "FLOP"), human(row.sent_bytes, "B")]
        lines.append([split, row.place, *cells])
    title = (
        f"SCCT, an iteration of {work.nodes} devices: {work.encoder.name} of "
        f"{work.encoder.num_blocks} blocks, {work.model.name} in the cloud, batches of "
        f"{work.batch} x {work.length} tokens; a device alone, the edge's layers of all"
    )
    return Section(title, _HEAD, lines, labels=2)


def _csv(found: list[PlaceRow]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PlaceRow._fields)
    writer.writerows(found)
    return text.getvalue()
