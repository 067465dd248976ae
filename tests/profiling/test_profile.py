"""experiments.profile from the command line: what it prints, and what it refuses."""

import csv
import io
import json

import pytest

from snake_jax.models.presets import PRESETS
from tests.launches import Launcher

GIB = 2**30


@pytest.fixture
def profile(monkeypatch, capfd):
    return Launcher(monkeypatch, capfd, "profile")


def told(profile, *flags):
    """The profile as JSON."""
    ended = profile(*flags, "--format=json")
    assert ended.code in (0, None), ended.stderr
    return json.loads(ended.stdout)


def test_the_papers_numbers_come_from_their_formula_and_the_nominal_count(profile):
    nominal, true = told(profile, "--model=opt-1.3b", "--layers=0")["formula"]
    assert (nominal["params"], nominal["blocks"]) == (1_300_000_000, 24)
    assert [f"{nominal[name] / GIB:.2f}" for name in ("full_bytes", "block_bytes")] == [
        "19.37",
        "3.13",
    ]
    params = (
        50272 * 2048 + 2050 * 2048 + 24 * (12 * 2048**2 + 13 * 2048) + 2 * 2048
    )  # tables, blocks, last norm
    assert true["params"] == params
    assert true["full_bytes"] == 16 * params
    assert true["block_bytes"] == pytest.approx((2 + 14 / 24) * params)


def test_a_case_is_told_by_its_row_that_holds_the_most(profile):
    found = told(profile, "--model=vgg11", "--train=block+ends", "--frozen_dtype=float32,int8")
    assert [(case["train"], case["frozen_dtype"]) for case in found["rows"]] == [
        ("block+ends", "float32"),
        ("block+ends", "int8"),
    ]
    for case in found["rows"]:
        assert len(case["layers"]) == 9
        assert case["state_bytes"] == max(row["state_bytes"] for row in case["layers"])


def test_a_teacher_is_a_copy_of_what_trains_and_a_pass_from_there_on(profile):
    flags = ("--model=vgg11", "--layers=fc11")
    (plain_case,) = told(profile, *flags)["rows"]
    (taught_case,) = told(profile, *flags, "--distill")["rows"]
    (plain,), (taught,) = plain_case["layers"], taught_case["layers"]
    assert taught["received_bytes"] == taught["trained_bytes"] > plain["received_bytes"] == 0
    assert (
        taught["step_flops"] - plain["step_flops"] == taught["teacher_flops"] == 2 * 32 * 512 * 10
    )


def test_layers_are_named_by_name_or_number(profile):
    (case,) = told(profile, "--model=tiny-opt", "--train=lora:4", "--layers=1,block_03")["rows"]
    assert [row["layer"] for row in case["layers"]] == ["block_01.lora", "block_03.lora"]


def test_places_of_a_cut_model_share_the_full_step(profile):
    found = told(profile, "--model=vgg11", "--algorithm=split", "--cut=conv2")
    (case,) = found["rows"]
    node, server = case["layers"]
    assert [node["layer"], server["layer"]] == ["node", "server"]
    assert node["step_flops"] + server["step_flops"] == found["full"]["step_flops"]
    assert node["state_bytes"] + server["state_bytes"] == found["full"]["state_bytes"]
    assert [sent["bytes"] for sent in found["cut"]] == [
        4 * 32 * 8 * 8 * 128,
        4 * 32,
        4 * 32 * 8 * 8 * 128,
    ]


def test_a_line_of_csv_for_every_layer_and_for_full_training(profile):
    lines = list(csv.DictReader(io.StringIO(profile("--model=vgg11", "--format=csv").stdout)))
    assert [line["layer"] for line in lines] == [
        *(f"conv{i}" for i in range(1, 9)),
        "fc9",
        "fc10",
        "fc11",
        "all",
    ]
    assert all(float(line["of_full_flops"]) < 1 for line in lines[:-1])
    assert float(lines[-1]["of_full_flops"]) == 1


def test_a_method_that_always_trains_the_ends_is_profiled_with_them(profile):
    (case,) = told(profile, "--model=mlp", "--algorithm=lisa")["rows"]
    assert case["train"] == "block+ends"
    ends = told(profile, "--model=mlp", "--train=block+ends")["rows"][0]
    assert case["trained_bytes"] == ends["trained_bytes"]


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_tables_name_the_formula_what_it_leaves_out_and_the_extremes(profile, form):
    text = profile("--model=opt-1.3b", f"--format={form}").stdout
    for part in (
        "19.37",
        "3.13",
        "19.61",
        "107,159,552 parameters of embedding and head",
        "least",
        "full training",
    ):
        assert part in text
    assert text.count("TFLOP of a step") == 1


@pytest.mark.usefixtures("quick_compilation")
def test_on_a_device_of_this_machine_blocks_share_a_compilation_and_are_timed(profile):
    flags = (
        "--model=tiny-llama",
        "--batch_size=2",
        "--max_length=16",
        "--layers=0,3",
        "--target=cpu",
    )
    ended = profile(*flags, "--format=json")
    assert ended.code in (0, None), ended.stderr
    assert [line.split(":")[0] for line in ended.stderr.splitlines() if "compiled in" in line] == [
        "all",
        "block_00",
    ]
    found = json.loads(ended.stdout)
    (case,) = found["rows"]
    assert len({row["compiled_peak_bytes"] for row in case["layers"]}) == 1
    assert all(
        row["measured_step_s"] > 0 and row["measured_roofline"] > 0 for row in case["layers"]
    )
    assert all(row["compiler_difference"] > 0 for row in case["layers"]), (
        "it counts elementwise work too"
    )
    assert min(found["peaks"].values()) > 0


def test_the_picture_is_written(profile, tmp_path):
    file = tmp_path / "profile.png"
    ended = profile("--model=vgg11", f"--plot={file}")
    assert ended.stderr.splitlines()[-1] == f"written: {file}"
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            ["--model=opt-13b"],
            "no such folder, and none of vgg11, cnn, lenet, mlp, 2nn, ",
        ),
        (
            ["--train=blocks"],
            "--train=blocks: want block, block+ends, lora:RANK as lora:128, or full",
        ),
        (["--train=lora:0"], "--train=lora:0: want"),
        (
            ["--model=vgg11", "--train=lora:8"],
            "networks for images train block, block+ends or full",
        ),
        (
            ["--model=vgg11", "--frozen_dtype=nf4"],
            "--frozen_dtype=nf4: not one of float32, bfloat16, int8",
        ),
        (["--model=vgg11", "--max_length=64"], "--max_length: it is for models of text"),
        (["--model=vgg11", "--cut=3"], "--cut=3: snake has no use for it"),
        (["--model=vgg11", "--algorithm=split", "--train=block"], "split trains all layers"),
        (
            ["--model=vgg11", "--algorithm=split", "--target=cpu"],
            "split is compiled as one program",
        ),
        (["--model=vgg11", "--algorithm=split", "--fits=cpu"], "split lies on several places"),
        (["--model=vgg11", "--algorithm=split", "--cut=99"], "--cut=99"),
        (["--cut=3"], "--cut=3: snake has no use for it"),
        (
            ["--algorithm=accelerated_fl"],
            "language models train with snake, fedavg, fedprox, scaffold, fednova, fedpart, "
            "progressive, badam, lisa, hift, sequential, centralised, split, splitfed, "
            "random_walking_snakes",
        ),
        (["--algorithm=fedavg", "--train=block"], "fedavg trains the whole model or all adapters"),
        (
            ["--algorithm=lisa", "--train=block"],
            "--train=block: lisa trains both ends at every visit; say block+ends or full",
        ),
        (["--max_length=4096"], "--max_length=4096: opt-1.3b has 2048 positions"),
        (["--layers=24"], "--layers=24: 24 is none of block_00"),
        (["--target=tpu:v9"], "--target=tpu:v9: want tpu:CHIP with CHIP of v4, v5e, v5p, v6e"),
        (["--target=abacus"], "--target=abacus: want cpu, gpu, tpu or tpu:CHIP"),
        (["--target=cpu", "--fits=cpu"], "give one of them"),
        (["--spare=0.1"], "--spare=0.1: it is what --fits leaves free"),
        (["--mesh=fsdp:2"], "--mesh=fsdp:2: it divides what is compiled; say for what"),
        (["--model=vgg11", "--mesh=fsdp:2"], "--mesh: it is for models of text"),
        (["--fits=cpu", "--train=block,lora:8"], "give one --train"),
    ],
    ids=lambda value: "_".join(value).replace("--", "") if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_one_line(profile, flags, reason):
    ended = profile(*flags)
    assert (ended.code, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert reason in line


# The widest take long to trace.
LEFT_OUT = ("llama", "mistral", "phi", "qwen3-4b")


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith(LEFT_OUT)])
def test_every_small_enough_preset_has_a_profile(profile, name):
    assert told(profile, f"--model={name}", "--layers=0")["rows"]
