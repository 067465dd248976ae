"""The fine-tuning launch as its users meet it: files, what the saved model says, resume after
SIGKILL, wrong input.
"""

import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from snake_jax.cli import main, one_run
from snake_jax.config import TextConfig
from snake_jax.models.hub import load_pretrained
from snake_jax.runs import loop
from tests.launches import Launcher, json_lines, results, strict_json, write_model, write_pairs
from tests.sweeps import sweep

SMALL = ("--nodes=2", "--max_length=64", "--batch_size=4", "--learning_rate=0.01", "--lora_scale=2")
peft_warns = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated and will be removed in v6. "
    "Use `is_activation_checkpointing` instead.:FutureWarning"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "model")
    write_pairs(folder / "pairs.jsonl")
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Programs compiled once serve the launches that are killed, their successors and the unbroken
    ones.
    """
    names = (
        "compilation_cache_dir",
        "persistent_cache_min_compile_time_secs",
        "disable_most_optimizations",
    )
    before = {f"jax_{name}": jax.config.values[f"jax_{name}"] for name in names}
    jax.config.update("jax_disable_most_optimizations", True)
    yield before["jax_compilation_cache_dir"]
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def small(files, cache):
    """Flags of a small run."""
    return (
        *SMALL,
        f"--model={files / 'model'}",
        f"--data={files / 'pairs.jsonl'}",
        f"--compilation_cache_dir={cache}",
    )


@pytest.fixture
def run(monkeypatch, capfd):
    monkeypatch.setattr(
        one_run, "draw_curves", lambda run, picture: None
    )  # the slowest part, and tested elsewhere
    return Launcher(monkeypatch, capfd, "finetune")


RESUME = {  # flags, and the number of lines after which the launch is killed
    "snake, adapters": (
        (
            "--lora_rank=4",
            "--lora_scale=2",
            "--cycles=3",
            "--dropout=0.1",
            "--interrupt=1@0.5",
            "--interruption=lost",
            "--order=random",
        ),
        4,
    ),
    "snake, blocks and ends": (
        (
            "--lora_rank=0",
            "--cycles=3",
            "--always_train=embed,head",
            "--interrupt=2",
            "--carry_optimizer_state",
        ),
        4,
    ),
    "fedavg": (
        (
            "--algorithm=fedavg",
            "--lora_rank=4",
            "--cycles=8",
            "--server_optimizer=yogi",
            "--server_momentum=0.5",
            "--server_learning_rate=0.01",
        ),
        3,
    ),
    "splitfed, three places": (
        (
            "--algorithm=splitfed",
            "--splitfed_version=v2",
            "--cut=block_00",
            "--cloud_cut=block_01",
            "--lora_rank=3",
            "--cycles=4",
        ),
        3,
    ),
}


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """`unbroken(run, method)`: the folder of a run that nothing happened to, made once."""
    folders = {}

    def folder(run, method):
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp("unbroken") / "run"
            save = "both" if "--lora_rank=4" in RESUME[method][0] else "none"
            ended = run(
                *small, *RESUME[method][0], f"--save={save}", f"--workdir={folders[method]}"
            )
            assert (ended.code, ended.stderr) == (0, "")
        return folders[method]

    return folder


def error_line(ended, code=2):
    """The one line on stderr of a launch that failed and printed nothing else there."""
    (line,) = ended.stderr.splitlines()
    assert ended.code == code
    assert line.startswith("error: ")
    return line


# Files


@pytest.fixture(scope="module")
def on_pydoc(cache, tmp_path_factory):
    """Folder and output of a run of a preset on the text that ships with Python; everything
    trains.
    """
    folder = tmp_path_factory.mktemp("pydoc") / "run"
    flags = (
        "--limit=16",
        "--max_length=512",
        "--always_train=embed,head",
        "--lora_rank=0",
        "--learning_rate=3e-3",
    )
    every = (
        *SMALL,
        *flags,
        "--tensorboard",
        f"--compilation_cache_dir={cache}",
        f"--workdir={folder}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["snake-jax", "finetune", *every])
        with (
            contextlib.redirect_stdout(screen := io.StringIO()),
            pytest.raises(SystemExit) as ended,
        ):
            main.main()
    assert ended.value.code == 0
    return folder, screen.getvalue()


def test_a_run_leaves_its_files(on_pydoc):
    folder, stdout = on_pydoc
    names = {
        "config.json",
        "metrics.jsonl",
        "events.jsonl",
        "ledger.jsonl",
        "summary.json",
        "checkpoints",
        "curves.png",
        "tensorboard",
    }
    assert {entry.name for entry in folder.iterdir()} == names | {"model"}
    assert {entry.name for entry in (folder / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    assert f"saved: {folder / 'model'}" in stdout
    visits = [line.split()[1] for line in stdout.splitlines() if line.startswith("visit ")]
    assert visits == ["1/4", "2/4", "3/4", "4/4"]


def test_metrics_and_summary_say_what_it_cost(on_pydoc):
    folder, _ = on_pydoc
    lines = [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["layers"] for line in lines] == [
        ["embed", f"block_0{i}", "head"] for i in range(4)
    ]
    for line in lines:
        assert line["perplexity"] == pytest.approx(np.exp(line["test_loss"]))
        assert 0 < line["target_tokens"] < line["tokens"]
        assert line["tokens_per_s"] == pytest.approx(line["tokens"] / line["train_s"])
        assert line["train_flops"] > 0
    summary = strict_json((folder / "summary.json").read_text())
    assert (
        summary["perplexity_after"] == lines[-1]["perplexity"] < 0.9 * summary["perplexity_before"]
    )
    assert 200 < summary["perplexity_before"] < 400, (
        "about the number of ids: nothing was learnt before"
    )
    block, embed, head = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 192 + 2 * 64, 264 * 64, 64
    assert summary["num_params"] == 4 * block + embed + head
    assert summary["trainable_params"] == block + embed + head
    trained = 4 * (block + embed + head)
    scales = 64 + 32 + 32 + 64 + 192 + 192 + 64
    stored = 3 * (block - 128 + 4 * scales + 4 * 128)
    assert (
        summary["state_bytes"] == 4 * trained + 4 * 3 + stored
    )  # weights, gradients, two moments; counts of steps
    assert summary["peak_train_bytes"] > summary["state_bytes"] - trained
    assert summary["num_compilations"] == 2


def test_the_saved_model_is_the_one_that_was_evaluated(on_pydoc):
    """By torch, each held-out text apart: what is packed has the loss it has alone."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, _ = on_pydoc
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    config = TextConfig(limit=16, max_length=512, lora_rank=0, nodes=2, always_train="embed,head")
    nll = tokens = 0.0
    for rows in loop.prepare(config).data.rows.test.values():
        for ids, targets, weight, _, segments in zip(*rows, strict=True):
            for segment in range(1, segments.max() + 1):
                here = segments == segment
                with torch.no_grad():
                    logits = model(torch.from_numpy(ids[here].astype(np.int64))[None]).logits[0]
                losses = torch.nn.functional.cross_entropy(
                    logits, torch.from_numpy(targets[here].astype(np.int64)), reduction="none"
                )
                nll, tokens = (
                    nll + float((losses.numpy() * weight[here]).sum()),
                    tokens + weight[here].sum(),
                )
    assert nll / tokens == pytest.approx(
        json_lines(folder / "metrics.jsonl")[-1]["test_loss"], rel=1e-5
    )


def test_the_saved_model_answers_at_the_length_it_has_room_for(on_pydoc, monkeypatch, capfd):
    generate = Launcher(monkeypatch, capfd, "generate")
    ended = generate(f"--model={on_pydoc[0] / 'model'}", "--prompt=What?", "--prompt=Why?")
    assert (ended.code, ended.stderr) == (0, "")
    assert [line for line in ended.stdout.splitlines() if line.startswith("> ")] == [
        "> What?",
        "> Why?",
    ]


@peft_warns
def test_the_saved_adapter_is_the_merged_model_here_and_in_peft(
    run, unbroken, files, monkeypatch, capfd
):
    adapted = unbroken(run, "snake, adapters")
    merged, params = load_pretrained(adapted / "model")
    ids = np.random.default_rng(0).integers(0, 256, (2, 20), np.int32)
    logits = np.asarray(jax.jit(merged.apply)(jax.tree.map(jnp.asarray, params), jnp.asarray(ids)))
    plain = np.asarray(
        jax.jit(merged.apply)(jax.tree.map(jnp.asarray, load_pretrained(files / "model")[1]), ids)
    )
    assert np.abs(logits - plain).max() > 0.05
    generate = Launcher(monkeypatch, capfd, "generate")
    flags = ("--prompt=3: 39 in words", "--max_new_tokens=6")
    answers = [
        generate(*models, *flags).stdout
        for models in (
            (f"--model={adapted / 'model'}",),
            (f"--model={files / 'model'}", f"--adapter={adapted / 'adapter'}"),
        )
    ]
    assert answers[0] == answers[1] != ""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(files / "model")
    model = peft.PeftModel.from_pretrained(model, adapted / "adapter").eval()
    with torch.no_grad():
        there = model(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(there, logits, rtol=1e-3, atol=1e-4)
    assert json.loads((adapted / "adapter" / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(files / "model")


# Resume


def launch_and_die(flag_list, metrics, lines):
    """In a process of its own: the launch, and a thread that kills the process when `metrics` has
    so many lines.
    """

    def watch():
        while True:
            with contextlib.suppress(FileNotFoundError), open(metrics, "rb") as file:
                if file.read().count(b"\n") >= lines:
                    os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.001)

    jax.config.update("jax_disable_most_optimizations", True)
    threading.Thread(target=watch, daemon=True).start()
    sys.argv = ["snake-jax", "finetune", *flag_list]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        main.main()


@pytest.mark.parametrize("method", sweep(RESUME, quick=["snake, adapters"]))
def test_killed_with_sigkill_it_ends_as_an_unbroken_run(method, run, small, unbroken, tmp_path):
    wanted, folder = results(unbroken(run, method)), tmp_path / "run"
    flag_list, lines = RESUME[method]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    flag_list = (*small, *flag_list, "--save=none", f"--workdir={folder}")
    process = context.Process(
        target=launch_and_die, args=(flag_list, folder / "metrics.jsonl", lines)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") in (lines, lines + 1)
    ended = run(*flag_list)
    assert (ended.code, ended.stderr) == (0, "")
    assert "going on after" in ended.stdout
    assert len(wanted["metrics"]) >= 8
    assert results(folder) == wanted


def test_another_configuration_names_the_flags_that_differ(run, small, tmp_path):
    flag_list = (*small, "--lora_rank=4", "--save=none", f"--workdir={tmp_path}")
    assert run(*flag_list).code == 0
    line = error_line(run(*flag_list, "--lora_rank=2", "--nopacking"))
    other = "--packing=True (here False), --lora_rank=4 (here 2)"
    assert f"holds a run with other flags: {other}; use those" in line
    ended = run(*flag_list)
    assert "finished before, visit 3 of 3: nothing is left to train" in ended.stdout


# Wrong input

WRONG_VALUES = [
    ("--model=/absent", "--model=/absent: no such folder, and no preset; presets are opt-125m"),
    ("--model=llama-9", "no such folder, and no preset; presets are opt-125m, opt-350m"),
    ("--data=/absent.jsonl", "--data=/absent.jsonl: No such file or directory"),
    ("--data=nowhere", "--data=nowhere is unknown; give pydoc, a file ending in .jsonl"),
    ("--tokenizer=/absent", "--tokenizer=/absent: no such folder"),
    ("--template=chat", "the tokenizer bytes has no chat template"),
    ("--template=poem", "--template=poem is unknown; allowed: auto, plain, alpaca, chat"),
    (
        "--data=pydoc --max_length=16",
        "--max_length=16 cuts every response; raise it (the longest text has",
    ),
    ("--max_length=7", "--max_length=7: must be at least 8"),
    ("--max_length=65", "--max_length=65: model has 64 positions"),
    ("--nodes=99", "99"),
    (
        "--lora_rank=9",
        "--lora_rank=9 is above the width of self_attn.k_proj [16, 8]: take at most 8",
    ),
    ("--lora_pattern=fc1", "no linear layer fc1; say all, or of"),
    ("--rank=2,4 --lora_rank=0", "--rank=2,4: there are no adapters with --lora_rank=0"),
    ("--rank=2,5", "--rank=2,5: 5 is no rank from 1 to --lora_rank=4"),
    ("--rank=2,,4", "--rank=2,,4: a gap is no rank from 1 to --lora_rank=4"),
    (
        "--always_train=block_01",
        "--always_train=block_01: block_01 is a block; say embed, head, both or none",
    ),
    ("--always_train=fc1", "no layer fc1; say none, or of embed, block_00"),
    (
        "--algorithm=fedavg --assign=milp",
        "--assign=milp: fedavg has no use for it; it is for snake",
    ),
    (
        "--algorithm=accelerated_fl",
        "--algorithm=accelerated_fl: the node's own loss wants a head there, which for a language",
    ),
    ("--algorithm=split --cut=block_09", "--cut=block_09: want a number of layers or the name of"),
    (
        "--algorithm=split --cut=block_01 --cloud_cut=1",
        "--cloud_cut=1 with --cut=block_01 and --tail=0: server and cloud need at least one",
    ),
    (
        "--algorithm=split --mesh=fsdp:1",
        "--mesh=fsdp:1: a cut model lies over node and server already; leave it out",
    ),
    ("--cloud_cut=2", "--cloud_cut=2: snake has no use for it; it is for split, splitfed"),
    (
        "--algorithm=fedavg --order=random",
        "--order=random: fedavg has no use for it; it is for snake",
    ),
    (
        "--algorithm=fedavg --frozen_dtype=nf4 --distill=on",
        "--distill=on: fedavg has no use for it",
    ),
    (
        "--save=adapter --lora_rank=0",
        "--save=adapter: there is no adapter with --lora_rank=0; say --save=model",
    ),
    (
        "--frozen_matmul=fused --frozen_dtype=bfloat16",
        "--frozen_dtype=bfloat16 has no codes; say int8 or nf4",
    ),
    ("--frozen_matmul=fused --mesh=fsdp:1", "--frozen_matmul=fused is for one device"),
    ("--save=all", "flag --save=all: value should be one of <model|adapter|both|none>"),
    ("--interrupt=3", "--interrupt=3: there is no visit 3; the last is 2"),
    ("--nodes=1 --fault_rate=0.1", "need an idle node"),
    ("--test_share=0.9", "--test_share=0.9: must be at most 0.5"),
    ("--learning_rate=nan", "--learning_rate=nan: must be a finite number"),
    ("--accumulate=0", "--accumulate=0: must be at least 1"),
    ("--partition=dirichlet", "--partition=dirichlet: not one of iid, by_category"),
    ("--width=2", "Unknown command line flag 'width'"),
    ("--workdir=", "--workdir is needed"),
    ("--workdir=/dev/null", "--workdir=/dev/null: File exists; give a folder that can be written"),
]
CHOICES = [
    (
        f"--{field.name}=nonsense",
        f"--{field.name}=nonsense: not one of {', '.join(field.metadata['choices'])}",
    )
    for field in dataclasses.fields(TextConfig)
    if "choices" in field.metadata
]


@pytest.fixture
def compiled():
    """Names of the compilations since the test began."""
    found = []

    def listen(name, _seconds, **_):
        if "backend_compile" in name:  # shapes are traced for, which is quick
            found.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(("wrong", "message"), WRONG_VALUES + CHOICES)
def test_wrong_flags_are_one_line_before_anything_is_compiled(
    wrong, message, run, small, tmp_path, compiled
):
    ended = run(*small, "--lora_rank=4", f"--workdir={tmp_path / 'run'}", *wrong.split())
    assert message in error_line(ended)
    assert ended.stdout == ""
    assert not compiled
    assert not (tmp_path / "run").exists()


def test_a_preset_is_checked_as_a_folder_is(run, small, tmp_path, compiled):
    line = error_line(
        run(*small, "--model=tiny-opt", "--lora_rank=99", f"--workdir={tmp_path / 'run'}")
    )
    assert "--lora_rank=99 is above the width of fc1 [64, 256]: take at most 64" in line
    assert not compiled


def lacking(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def misshapen(tensors):
    tensors["model.layers.2.self_attn.q_proj.weight"] = np.zeros((16, 15), np.float32)


def unknown(tensors):
    tensors["model.layers.3.mlp.up_proj.weight"] = np.zeros((24, 16), np.float32)


def changed_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def changed_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def few_rows(folder):
    """An embedding for fewer tokens than bytes and marks."""
    write_model(folder, vocab_size=250)


WRONG_MODELS = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "no config.json; give a folder in the form of Hugging Face",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "no weights: neither model.safetensors nor",
    ),
    "unknown architecture": (
        lambda f: changed_config(f, model_type="mamba"),
        "model_type=mamba is unknown; there are",
    ),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
    "missing": (
        lambda f: changed_weights(f, lacking),
        "lacks tensors: model.layers.1.mlp.up_proj.weight",
    ),
    "misshapen": (
        lambda f: changed_weights(f, misshapen),
        "does not fit its config.json: model.layers.2.self_attn.q_proj.weight is [16, 15], not "
        "[16, 16]",
    ),
    "unknown tensor": (
        lambda f: changed_weights(f, unknown),
        "has no place for: model.layers.3.mlp.up_proj.weight",
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:100]
        ),
        "model.safetensors is broken, copy it anew",
    ),
    "a small embedding": (
        few_rows,
        "the tokenizer bytes has 259 ids but the model's embedding only 250 rows",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_MODELS)
def test_a_wrong_model_is_one_line_that_names_what_is_wrong(wrong, run, small, tmp_path, compiled):
    break_it, message = WRONG_MODELS[wrong]
    break_it(write_model(tmp_path / "model"))
    ended = run(
        *small, f"--model={tmp_path / 'model'}", "--lora_rank=4", f"--workdir={tmp_path / 'run'}"
    )
    assert message in error_line(ended)
    assert not compiled


WRONG_DATA = {
    "empty": ("", "pairs holds no pairs with a prompt and a response"),
    "blank": ("\n\n", "holds no pairs with a prompt and a response"),
    "no JSON": ("{\n", "pairs.jsonl:1: is not JSON"),
    "no response": ('{"prompt": "a"}\n', "pairs.jsonl:1: has none of the fields response, chosen"),
    "one prompt": (
        '{"prompt": "a", "response": "b"}\n',
        "pairs holds one prompt only, so none can be held out",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_DATA)
def test_wrong_data_is_one_line_that_names_the_file(wrong, run, small, tmp_path, compiled):
    text, message = WRONG_DATA[wrong]
    (tmp_path / "pairs.jsonl").write_text(text)
    ended = run(
        *small,
        f"--data={tmp_path / 'pairs.jsonl'}",
        "--lora_rank=4",
        f"--workdir={tmp_path / 'run'}",
    )
    assert message in error_line(ended)
    assert not compiled
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("", "--model is needed"),
        ("--model=MODEL", "--prompt is needed"),
        ("--model=/absent --prompt=a", "/absent"),
        (
            "--model=MODEL --prompt=a --adapter=/absent",
            "is not readable: give the folder of a PEFT adapter",
        ),
        ("--model=MODEL --prompt=a --temperature=-1", "flag --temperature=-1"),
    ],
)
def test_wrong_flags_of_generate_are_one_line(wrong, message, files, monkeypatch, capfd, compiled):
    ended = Launcher(monkeypatch, capfd, "generate")(
        *wrong.replace("MODEL", str(files / "model")).split()
    )
    assert message in error_line(ended)
    assert not compiled


def test_divergence_names_the_visit_and_keeps_the_state_before_it(run, small, tmp_path):
    flag_list = (*small, "--lora_rank=4", "--lr_decay=1e19", "--cycles=2")
    line = error_line(run(*flag_list, f"--workdir={tmp_path}"), code=1)
    assert "visit 3 (node 1, layers block_00.lora) diverged" in line
    assert [record["visit"] for record in json_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_the_listener_hears_compilations(compiled):
    jax.jit(lambda x: x + 1)(np.ones(3))
    assert compiled
