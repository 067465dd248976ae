"""Run folders written by hand, for the tests of the reports."""

import json
import math

MODEL_BYTES, ADAPTER_BYTES = 2_631_516_160, 18_874_368
BLOCKS = [f"block_{number:02d}" for number in range(24)]
BEFORE, TARGET = 18.0, 8.0
SUMMED = (
    "iterations",
    "examples",
    "tokens",
    "target_tokens",
    "bytes_up",
    "bytes_down",
    "train_flops",
    "train_s",
)


def lines_of(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write_run(path, records, config=None, summary=None, ledger=None):
    """Writes a run folder; gives its path."""
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text(lines_of(records))
    if ledger is not None:
        (path / "ledger.jsonl").write_text(lines_of(ledger))
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def image_line(visit, **changes):
    """A visit of a classification run, of four."""
    return {
        "visit": visit,
        "cycle": visit // 2,
        "node": visit % 3,
        "layers": ["conv1", f"conv{visit % 2 + 2}", "fc"],
        "iterations": 10,
        "examples": 320,
        "bytes_up": 1000,
        "bytes_down": 3000,
        "train_flops": 2e9,
        "train_s": 0.5,
        "loss": 2.0 / (visit + 1),
        "accuracy": [0.2, None, 0.6, 0.5][visit],
        "test_loss": None,
        "learning_rate": 0.1,
        "distilled": False,
        "event": "",
        **changes,
    }


def language_line(visit, perplexity=None, **changes):
    """A visit in which one node fine-tunes the adapters of one block of 24; 20 steps of 6 rows of
    512 tokens.
    """
    return {
        "visit": visit,
        "cycle": visit // 24,
        "node": visit % 24,
        "layers": [f"{BLOCKS[visit % 24]}.lora"],
        "iterations": 20,
        "examples": 120,
        "tokens": 60_000,
        "target_tokens": 24_000,
        "tokens_per_s": 4_000.0,
        "bytes_up": ADAPTER_BYTES,
        "bytes_down": ADAPTER_BYTES,
        "train_flops": 2.5e14,
        "server_flops": 0,
        "cloud_flops": 0,
        "train_s": 15.0,
        "loss": round(1.8 + math.exp(-visit / 20), 4),
        "accuracy": None if perplexity is None else 1 / perplexity**0.4,
        "test_loss": None if perplexity is None else math.log(perplexity),
        "perplexity": perplexity,
        "learning_rate": 1e-4,
        "distilled": False,
        "event": "",
        **changes,
    }


def language_round(number, perplexity, **changes):
    """A round of full fine-tuning by all 24 nodes: each moves the whole model up and down."""
    whole = {"layers": ["embed", *BLOCKS, "head"], "node": list(range(24)), "cycle": number}
    cost = {
        name: 24 * amount
        for name, amount in language_line(0).items()
        if name in SUMMED and not name.startswith("by")
    }
    sent = {"bytes_up": 24 * MODEL_BYTES, "bytes_down": 24 * MODEL_BYTES}
    return language_line(number, perplexity, **whole, **cost, **sent, **changes)


def language_config(**changes):
    return {
        "algorithm": "snake",
        "model": "facebook/opt-1.3b",
        "data": "Dahoas/rm-static",
        "nodes": 24,
        "cycles": 3,
        "partition": "by_category",
        "lora_rank": 128,
        "frozen_dtype": "int8",
        "max_length": 512,
        "learning_rate": 1e-4,
        "seed": 0,
        "target_perplexity": TARGET,
        **changes,
    }


def language_summary(lines, **changes):
    """As a run writes it from its lines."""
    known = [line["perplexity"] for line in lines if line["perplexity"] is not None]
    reached = next(
        (i for i, line in enumerate(lines) if (line["perplexity"] or math.inf) <= TARGET), None
    )
    upto = None if reached is None else lines[: reached + 1]
    return {
        "perplexity_before": BEFORE,
        "perplexity_after": known[-1],
        "best_perplexity": min(known),
        "target_perplexity": TARGET,
        "seed": 0,
        "divergence": 0.25,
        **{name: sum(line[name] for line in lines) for name in SUMMED},
        **{
            f"{name}_to_target": upto and sum(line[name] for line in upto)
            for name in SUMMED
            if "tok" not in name
        },
        "num_params": 1_315_758_080,
        "trainable_params": 4_718_592,
        "state_bytes": 1_450_000_000,
        "peak_train_bytes": 2_400_000_000,
        "compile_s": 20.0,
        "num_compilations": 3,
        **changes,
    }


def snake_perplexity(visit):
    """Evaluated every fourth visit; falls from BEFORE to a little above 6."""
    return round(6 + (BEFORE - 6) * math.exp(-(visit + 1) / 20), 4) if visit % 4 == 3 else None


def write_language_snake(path, visits=72, finished=True, **changes):
    lines = [language_line(visit, snake_perplexity(visit)) for visit in range(visits)]
    return write_run(
        path, lines, language_config(**changes), language_summary(lines) if finished else None
    )


def write_language_fedavg(path, perplexities=(9.0, 7.5, 7.0), **changes):
    lines = [language_round(number, perplexity) for number, perplexity in enumerate(perplexities)]
    summary = language_summary(
        lines, peak_train_bytes=24e9, trainable_params=1_315_758_080, state_bytes=21e9
    )
    config = language_config(algorithm="fedavg", lora_rank=0, frozen_dtype="float32", **changes)
    return write_run(path, lines, config, summary)
