"""The counts as a table, beside seven codebases of the field."""

from experiments.house.counts import LONG_FUNCTION, LONG_LINE, MANY_PARAMETERS, House, Spread

# This house before its rebuilding, and the field, measured by the same counts at the versions of
# that day (November 2026), tests excluded. They are quoted here, not measured again.
BEFORE = {
    "library before": (
        "17.9k/145", "114/247/328", "6/18/56", "0.0 %", "2.2/4/12, 5", "7.9", "49 (5.3)", "17",
        "9.8 %", "0.4 %", "82/98 %", "11/12 %", "35/7",
    ),
    "experiments before": (
        "5.7k/56", "91/194/249", "6/21/43", "0.0 %", "1.7/3/8, 0", "7.6", "54 (6.3)", "9.1",
        "8.8 %", "0.3 %", "89/99 %", "13/20 %", "18/2",
    ),
}  # fmt: skip
FIELD = {
    "fedjax": (
        "10.6k/53", "141/470/1027", "9/38/134", "4.0 %", "1.8/3/12, 2", "3.7", "8 (0)", "3.6",
        "0 %", "13 %", "49/69 %", "1/6 %", "2/7",
    ),
    "optax": (
        "24.3k/76", "190/735/2795", "19/87/736", "19.1 %", "2.6/5/18, 15", "2.9", "3 (0)", "14",
        "0 %", "9.5 %", "54/61 %", "0/0 %", "1/13",
    ),
    "equinox": (
        "16.0k/72", "134/510/1279", "7/40/428", "4.9 %", "2.0/5/15, 10", "3.7", "6 (0)", "8",
        "0 %", "6.6 %", "36/42 %", "0/0 %", "23/4",
    ),
    "big_vision": (
        "52k/222", "167/449/4759", "12/51/813", "7.0 %", "2.1/4/16, 19", "4.9", "7 (0.2)", "6",
        "0 %", "15.5 %", "56/11 %", "20/15 %", "6/7",
    ),
    "pfl-research": (
        "19.1k/112", "100/425/1031", "8/27/199", "1.8 %", "1.5/3/8, 0", "3.4", "8 (0.2)", "4",
        "0 %", "4.6 %", "46/70 %", "0/24 %", "7/10",
    ),
    "tunix": (
        "76k/250", "186/749/1967", "12/51/567", "7.6 %", "1.7/4/21, 30", "4.1", "5 (0.2)", "2.4",
        "0 %", "8.4 %", "60/85 %", "11/8 %", "1/15",
    ),
    "flower": (
        "58k/363", "106/382/1331", "13/46/409", "6.0 %", "1.9/4/17, 40", "3.1", "7 (0.1)", "0.4",
        "0 %", "16 %", "96/100 %", "10/4 %", "1/13",
    ),
}  # fmt: skip


def table(houses: dict[str, House]) -> str:
    """This house's parts, now and before, and the field's projects in Markdown, a column each."""
    columns = {part: cells(house) for part, house in houses.items()}
    columns |= BEFORE | FIELD
    head = ["", *columns]
    lines = [head, [":--", *("--:" for _ in columns)]]
    for number, name in enumerate(NAMES):
        lines.append([name, *(column[number] for column in columns.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NAMES = (
    "lines / files",
    "lines of a file, median/p90/max",
    "lines of a function, median/p90/max",
    f"functions of more than {LONG_FUNCTION} lines",
    f"parameters mean/p90/max, functions with more than {MANY_PARAMETERS}",
    "syntax nodes a line",
    "comprehensions in 1000 lines (nested)",
    "lambdas in 1000 lines",
    f"lines of more than {LONG_LINE} characters",
    "comment lines",
    "public functions with docstring / typed",
    "public class / function names used for 2+ things",
    "modules loose at the top / packages",
)
"""The rows of the table, in the order of `cells`."""


def cells(house: House) -> tuple[str, ...]:
    """A column of the table."""
    parameters = house.parameters
    return (
        f"{house.lines / 1000:.1f}k/{house.files}",
        _slashed(house.file_lines),
        _slashed(house.function_lines),
        f"{house.long_functions_percent:.1f} %",
        f"{house.parameters_mean:.1f}/{parameters.p90:.0f}/{parameters.greatest}, "
        f"{house.many_parameters}",
        f"{house.nodes_a_line:.1f}",
        f"{house.comprehensions:.0f} ({house.nested_comprehensions:.1f})",
        f"{house.lambdas:.1f}",
        f"{house.long_lines_percent:.1f} %",
        f"{house.comment_lines_percent:.1f} %",
        f"{house.documented_percent:.0f}/{house.typed_percent:.0f} %",
        f"{house.repeated_classes_percent:.0f}/{house.repeated_functions_percent:.0f} %",
        f"{house.loose_modules}/{house.packages}",
    )


def _slashed(found: Spread) -> str:
    return f"{found.median:.0f}/{found.p90:.0f}/{found.greatest}"
