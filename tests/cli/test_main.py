"""The program `snake-jax`: what it teaches, how fast, and what it says to whom mistypes."""

import dataclasses
import subprocess
import sys
import zipfile

import pytest

from snake_jax import names
from snake_jax.algorithms.registry import ALGORITHMS
from snake_jax.cli import help_page, home, main
from snake_jax.cli.commands import COMMANDS
from snake_jax.cli.groups import GROUPS, OTHER, group_of
from snake_jax.cli.scct_figures import write
from snake_jax.cli.scct_figures.scales import SCALES
from snake_jax.config import ImageConfig, TextConfig
from snake_jax.data.images.augmentation import AUGMENTATIONS
from snake_jax.data.partition import PARTITIONS
from snake_jax.data.text.templates import TEMPLATES
from snake_jax.models.presets import PRESETS
from snake_jax.models.registry import MODELS
from snake_jax.profiling import output
from snake_jax.report import table
from snake_jax.scct import large, small
from tests.launches import ROOT, Launcher

HEAVY = {"jax", "jaxlib", "numpy", "flax", "transformers", "orbax", "matplotlib", "optax", "rich"}


def program(*words, **options):
    """`python -m snake_jax` in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "snake_jax", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


@pytest.fixture
def snake_jax(monkeypatch, capfd):
    """`snake_jax(*words)`: the program in this process; exit code, output and errors."""

    def run(*words):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["snake-jax", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    "words",
    [["--help"], ["classify", "--help"], ["finetune", "--helpfull"], ["scct", "--help"]],
)
def test_help_imports_next_to_nothing(words):
    """Counted, and not timed: a clock says what else the machine does."""
    script = f"""
import atexit, sys
from snake_jax.cli import main
sys.argv = ["snake-jax", *{words!r}]
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
main.main()
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    modules = done.stderr.split()
    assert HEAVY & set(modules) == set()
    assert len(modules) < 300


def test_help_shows_every_command_with_an_example_that_it_would_take(snake_jax):
    code, stdout, stderr = snake_jax("--help")
    assert (code, stderr) == (0, "")
    assert snake_jax() == snake_jax("help") == (code, stdout, stderr)
    words = " ".join(stdout.split())
    for command in COMMANDS.values():
        assert command.example in stdout
        assert command.purpose in words
        program, name, *rest = command.example.split()
        assert (program, name) == ("snake-jax", command.name)
        flags = [word for word in rest if word.startswith("--")]
        values = main.define(command)
        assert main.parse(command, values, ["snake-jax", *flags]) == ["snake-jax"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_groups_its_flags_and_leaves_the_rest_to_helpfull(name, snake_jax):
    command = COMMANDS[name]
    _, short, _ = snake_jax(name, "--help")
    _, full, _ = snake_jax(name, "--helpfull")
    assert command.text in short
    assert command.text in full
    shown = [line.split(":")[0].strip() for line in short.splitlines() if line.startswith("  --")]
    every = [line.split(":")[0].strip() for line in full.splitlines() if line.startswith("  --")]
    assert {flag.removeprefix("--").removeprefix("[no]") for flag in shown} == set(
        command.newcomers
    )
    assert set(shown) <= set(every)
    heads = [
        line.removesuffix(":") for line in short.splitlines() if line.removesuffix(":") in GROUPS
    ]
    assert heads == [group for group in GROUPS if {*GROUPS[group]} & {*command.newcomers}]


@pytest.mark.parametrize("word", ["--help", "-h", "-?", "--helpshort", "--help=true", "-help"])
def test_all_ways_to_ask_for_help_are_answered(word, snake_jax):
    assert snake_jax("compare", word) == snake_jax("compare", "--help")
    assert snake_jax("compare", "--help")[0] == 0


def test_help_is_given_though_other_words_are_wrong(snake_jax):
    code, stdout, stderr = snake_jax("compare", "--fromat=json", "--help")
    assert (code, stderr) == (0, "")
    assert stdout.startswith("snake-jax compare: ")


def test_every_flag_of_a_command_has_one_section():
    every = []
    for flags in GROUPS.values():
        every += flags
    assert len(every) == len(set(every))
    for command in COMMANDS.values():
        own = main.FlagValues()
        command.define(own)
        assert [flag for flag in own if group_of(flag) == OTHER] == []
    known = set()
    for command in COMMANDS.values():
        known |= set(main.define(command))
    assert set(every) <= known


def test_the_sections_that_a_newcomer_meets_are_those_of_a_decision():
    wanted = ["data", "model", "method", "nodes", "optimisation", "output", "simulation", "machine"]
    assert list(GROUPS)[1:] == [*wanted, "service"]
    assert {group_of(flag) for flag in COMMANDS["classify"].newcomers} == {*GROUPS} - {"service"}


def test_names_in_help_are_those_of_the_registries():
    assert tuple(ALGORITHMS) == names.ALGORITHMS
    assert tuple(MODELS) == names.IMAGE_MODELS
    assert tuple(PRESETS) == names.LANGUAGE_MODELS
    assert tuple(PARTITIONS) == names.PARTITIONS
    assert tuple(AUGMENTATIONS) == names.AUGMENTATIONS
    assert tuple(TEMPLATES) == names.TEMPLATES
    assert tuple(table.FORMATS) == names.TABLE_FORMATS
    assert tuple(output.FORMATS) == names.PROFILE_FORMATS
    assert small.SOLVERS == names.SCCT_SOLVERS
    assert large.METHODS == names.SCCT_SPLITS
    assert tuple(write.FIGURES) == names.SCCT_FIGURES
    assert tuple(SCALES) == names.SCCT_SCALES


@pytest.mark.parametrize("kind", [ImageConfig, TextConfig])
def test_help_says_the_defaults(kind, snake_jax):
    name = "classify" if kind is ImageConfig else "finetune"
    words = " ".join(snake_jax(name, "--helpfull")[1].split())
    for field in dataclasses.fields(kind):
        if not isinstance(field.default, bool) and field.default != "":
            text = words.partition(f"--{field.name}: ")[2].partition(" --")[0]
            assert text.partition("(default ")[2].startswith(f"{field.default})"), field.name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clasify"], "clasify: no such command; did you mean classify?; snake-jax --help lists"),
        (["zebra"], "zebra: no such command; snake-jax --help lists them"),
        (["--nodes=3"], "--nodes=3: no such command; snake-jax --help lists them"),
        (["compare", "--fromat=json"], "Unknown command line flag 'fromat'. Did you mean: format"),
        (["profile", "vgg11"], "vgg11: flags begin with -- and take their value after =; --help"),
        (["presets", "demo_snak"], "demo_snak: no such preset; did you mean demo_snake?"),
        (["presets", "one", "two"], "one preset at a time, not 2: snake-jax presets NAME"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_nearest_name(words, message, snake_jax):
    code, stdout, stderr = snake_jax(*words)
    assert (code, stdout) == (2, "")
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_two_commands_in_one_process_do_not_know_each_others_flags(snake_jax):
    classify, finetune = main.define(COMMANDS["classify"]), main.define(COMMANDS["finetune"])
    main.parse(COMMANDS["classify"], classify, ["snake-jax", "--nodes=3", "--verbosity=1"])
    main.parse(COMMANDS["finetune"], finetune, ["snake-jax", "--nodes=5"])
    assert (classify.nodes, finetune.nodes) == (3, 5)
    assert finetune.verbosity == finetune["verbosity"].default
    assert "dataset" not in finetune


def test_the_doors_of_experiments_are_the_same_program():
    doors = {path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem in COMMANDS}
    assert doors == set(COMMANDS) - {"presets", "certificates", "serve", "services"}
    for name in doors:
        command = [sys.executable, "-W", "error", "-m", f"experiments.{name}", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        command = COMMANDS[name]
        assert done.stdout == help_page.command_page(command, main.define(command), full=False)


# The home folder


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        ("~/run", "/home/me/run"),
        ("~", "/home/me"),
        ("npz:~/data.npz", "npz:/home/me/data.npz"),
        ("file:~/parts.json", "file:/home/me/parts.json"),
        ("~/a.jsonl,pydoc,~/b.jsonl", "/home/me/a.jsonl,pydoc,/home/me/b.jsonl"),
        ("gs://bucket/~/run", "gs://bucket/~/run"),
        ("runs/a~b", "runs/a~b"),
        ("~nobody_of_that_name/run", "~nobody_of_that_name/run"),
    ],
)
def test_the_home_folder_is_put_in_where_a_path_begins(value, whole, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert home.expanded(value) == whole


def test_all_flags_that_name_places_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    wanted = {
        "classify": ("workdir", "dataset", "partition", "node_file", "compilation_cache_dir"),
        "finetune": ("workdir", "model", "data", "tokenizer", "trace_dir"),
        "generate": ("model", "adapter", "tokenizer"),
        "profile": ("model", "plot"),
        "compare": ("output",),
        "report": ("output",),
        "accounting": ("output", "results"),
        "scct": ("solve", "out"),
    }
    for name, flags in wanted.items():
        values = main.define(COMMANDS[name])
        main.parse(COMMANDS[name], values, ["snake-jax", *(f"--{flag}=~/x" for flag in flags)])
        assert {flag: values[flag].value for flag in flags} == dict.fromkeys(flags, "/home/me/x")
    values = main.define(COMMANDS["compare"])
    rest = main.parse(COMMANDS["compare"], values, ["snake-jax", "~/a", "~/b"])
    assert rest == ["snake-jax", "/home/me/a", "/home/me/b"]


def test_data_and_workdir_may_lie_in_the_home_folder(monkeypatch, capfd, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "data.npz", "w"):
        pass
    run = Launcher(monkeypatch, capfd)
    ended = run("--dataset=npz:~/data.npz", "--workdir=~/run")
    assert ended.code == 2
    assert f"{tmp_path}/data.npz" in ended.stderr
    assert "no such file" not in ended.stderr
