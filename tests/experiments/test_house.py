"""The counts of the house: a tiny tree counted by hand."""

import json
from pathlib import Path

import pytest

from experiments.house import table
from experiments.house.counts import PARTS, Spread, measure, spread
from experiments.house.imports import imports_of

ROOT = Path(__file__).parents[2]
FILES = {
    "tests/test_imports.py": 'ORDER = ("ground", "kernels", "data", "models", "door")\n',
    # 4 lines, of them one blank and one a comment, one of more than 100 characters.
    "snake_jax/config.py": f"# Why.\n\nx = lambda: 1\ny = '{'a' * 100}'\n",
    "snake_jax/__init__.py": "",
    # 9 lines. A typed and documented function of 3 lines, a method of 2, one inside it of 1.
    "snake_jax/data/images.py": '''\
from snake_jax import config
def load(a: int, *b: int) -> int:
    """Docstring."""
    return [c for c in [d for d in b]]
class Images:
    def read(self, a, b):
        def inner(): return 1
def _hidden(): pass
from snake_jax.kernels import conv
''',
    # 5 lines, a function of the same name, no types.
    "snake_jax/models/vgg.py": """\
def load(a, b, c, d, e, f, g, h, i):
    from snake_jax.data import images
    from ..data.images import load as other
    return {j: k for j in a for k in j}
from . import names
""",
    # 2 lines: models on the right of data.
    "snake_jax/models/names.py": "class Images: pass\nclass Names: pass\n",
    "kernels/conv.py": "from snake_jax.models import names\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_a_tiny_tree_is_counted_as_by_hand(tree):
    house = measure(tree, PARTS["library"])
    assert (house.lines, house.files) == (21, 5)  # the empty __init__ is no file
    assert house.file_lines == Spread(4, 9, 9)
    # load 3, read 2, inner 1, _hidden 1, load 4.
    assert house.function_lines == Spread(2, 4, 4)
    assert house.long_functions_percent == 0
    # Two and two, none twice, nine.
    assert (house.parameters_mean, house.many_parameters) == (13 / 5, 1)
    assert house.parameters == Spread(2, 9, 9)
    # One with another inside, that other, one with two `for`.
    assert house.comprehensions == 1000 * 3 / 21
    assert house.nested_comprehensions == 1000 * 2 / 21
    assert house.lambdas == 1000 * 1 / 20
    assert house.long_lines_percent == 100 * 1 / 21
    assert house.comment_lines_percent == 100 * 1 / 20
    # load, read, inner and load have public names.
    assert (house.documented_percent, house.typed_percent) == (25, 25)
    # Images of Images, Names; load of load.
    assert (house.repeated_classes_percent, house.repeated_functions_percent) == (50, 100)
    assert (house.loose_modules, house.packages) == (2, 2)


def test_nodes_of_the_syntax_tree_are_counted(tmp_path):
    (tmp_path / "top").mkdir()
    (tmp_path / "top/a.py").write_text("x = 1\ndef f(): pass\n")
    # Module, Assign, Name, Store, Constant, FunctionDef, arguments, Pass.
    assert measure(tmp_path, ["top"]).nodes_a_line == 8 / 2


def test_imports_are_counted_between_rooms(tree):
    found = imports_of(tree)
    # config.py, data, models, kernels.
    assert found.rooms == 4
    # data to config and kernels, models to data, kernels to models.
    assert found.arrows == 4
    assert found.cycles == 1
    # kernels imports models, which stands on its right.
    assert found.upward == 1


def test_a_tree_without_circles_has_none(tree):
    (tree / "kernels/conv.py").write_text("x = 1\n")
    found = imports_of(tree)
    assert (found.arrows, found.cycles, found.upward) == (3, 0, 0)


def test_nine_in_ten_are_not_above_the_p90():
    assert spread(range(1, 11)) == Spread(5.5, 9, 10)
    assert spread([3]) == Spread(3, 3, 3)


def test_every_column_of_the_table_has_every_row(tree):
    houses = {"library": measure(tree, PARTS["library"])}
    lines = table.table(houses).splitlines()
    assert len(lines) == 2 + len(table.NAMES)
    assert {line.count("|") for line in lines} == {3 + len(table.BEFORE | table.FIELD)}
    assert lines[2].startswith("| lines / files | 0.0k/5 | 17.9k/145 |")


def test_the_committed_numbers_are_of_both_parts_and_keep_the_rule():
    found = json.loads((ROOT / "experiments/results/house.json").read_text())
    assert set(found["houses"]) == set(PARTS)
    assert (found["imports"]["cycles"], found["imports"]["upward"]) == (0, 0)
    assert all(len(row) == len(table.NAMES) for row in found["quoted"].values())
