"""The run folders that the page's tests show: a snake, a fedavg, one unfinished, and what is no
run.
"""

from tests.run_folders import lines_of, write_run

LAYERS = ["conv1", "conv2", "conv3", "conv10", "fc"]
NASTY = "</script><script>document.title = 'owned'</script><b>&amp;{{data}}"
SENT_BACK, MODEL = 1000, 5000
HAPPENED = [
    {"time_s": 1000.0, "round": 0, "visit": None, "node": 0, "event": "admitted", "cause": "fits"},
    {"time_s": 1090.5, "round": 4, "visit": 4, "node": 1, "event": "lost", "cause": NASTY},
    {"time_s": 1092.0, "round": 5, "visit": 4, "node": 2, "event": "taken over", "cause": "idle"},
]
EVENTS = {4: "interrupted", 5: "takeover"}


def line(visit, **changes):
    """A visit of a snake over three nodes and three middle layers."""
    return {
        "visit": visit,
        "cycle": visit // 3,
        "node": visit % 3,
        "layers": ["conv1", LAYERS[1 + visit % 3], "fc"],
        "iterations": 10,
        "examples": 320,
        "bytes_up": SENT_BACK,
        "bytes_down": MODEL,
        "train_flops": 2e9,
        "train_s": 0.5,
        "loss": 2.0 / (visit + 1),
        "accuracy": [0.2, None, 0.6][visit % 3],
        "test_loss": None,
        "event": EVENTS.get(visit, ""),
        "node_flops": [1, 2],
        **changes,
    }


def transfers(record):
    """The ledger's rows of one line: the model to each node, its update back."""
    nodes = record["node"] if isinstance(record["node"], list) else [record["node"]]
    for node in nodes:
        why = "initial" if record["visit"] < 3 else "catch-up"
        sent = {"visit": record["visit"], "layers": LAYERS}
        yield sent | {"source": "server", "destination": f"node{node}", "bytes": MODEL, "why": why}
        yield sent | {
            "source": f"node{node}",
            "destination": "server",
            "bytes": SENT_BACK,
            "why": "update",
        }


def ledger_of(records):
    return [row for record in records for row in transfers(record)]


def write_runs(root):
    """A finished snake, a finished fedavg one folder deeper, an unfinished run without a ledger,
    and what is no run.
    """
    config = {
        "algorithm": "snake",
        "nodes": 3,
        "cycles": 2,
        "learning_rate": 0.1,
        "partition": "iid",
        "dataset": NASTY,
    }
    summary = {"final_accuracy": 0.61, "best_accuracy": 0.61, "peak_train_bytes": 5e7}
    visits = [line(visit, clock_s=2.0) for visit in range(6)]
    write_run(root / "a_snake", visits, config, summary, ledger_of(visits))
    (root / "a_snake" / "events.jsonl").write_text(lines_of(HAPPENED))
    rounds = [
        line(
            n,
            cycle=n,
            node=[0, 1, 2],
            layers=LAYERS,
            iterations=30,
            bytes_up=3 * SENT_BACK,
            bytes_down=3 * MODEL,
        )
        for n in range(2)
    ]
    fedavg = config | {"algorithm": "fedavg", "learning_rate": 0.2}
    write_run(
        root / "deep" / "er" / "b_fedavg",
        rounds,
        fedavg,
        summary | {"final_accuracy": 0.7},
        ledger_of(rounds),
    )
    del config["partition"]
    write_run(root / "c <script>alert(1)</script>", [line(0, loss=float("nan"))], config)
    write_run(root / "no_visit_yet", [], config)
    write_run(root / "a_snake" / "checkpoints" / "0", [line(0)], config)
    return root
