"""The bad-input matrix of fields: each wrong in every way that its type allows.

Values that no field of a type may have are derived from the fields, so a new field is in the matrix by itself; texts
need a row by hand, and a test fails until there is one.
"""

import math
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from helpers.refused import DIRECTORY, LONG, SETTINGS, refusal
from pydantic.fields import FieldInfo

from loft_jax.config.config import flatten
from loft_jax.config.fields import Section
from loft_jax.config.loading import iterate_fields

FIELDS = {(command, key): field for command, model in SETTINGS.items() for key, field in iterate_fields(model)}
SECTIONS = [
    (command, key)
    for command, model in SETTINGS.items()
    for key, field in model.model_fields.items()
    if isinstance(field.default, Section)
]


def parts(field: FieldInfo) -> tuple[Any, list[Any], bool]:
    """A field's type without null, the constraints on it, and whether it may be null."""
    annotation, constraints = field.annotation, list(field.metadata)
    members = get_args(annotation) if type(None) in get_args(annotation) else (annotation,)
    (member,) = (m for m in members if m is not type(None))
    if hasattr(member, "__metadata__"):
        constraints += [c for m in member.__metadata__ for c in (m.metadata if isinstance(m, FieldInfo) else [m])]
        member = get_args(member)[0]
    return member, constraints, type(None) in members


def wrong_types(field: FieldInfo) -> list[Any]:
    """Values of every other type."""
    kind, _, optional = parts(field)
    never = [{"a": 1}, b"1"] if optional else [None, {"a": 1}, b"1"]
    kind = dict if get_origin(kind) is dict else kind
    if kind is dict:
        never = [None, b"1"]
    if get_origin(kind) is Literal:
        return [*never, "nonsense", "", " ", "a\nb", 5, True, [get_args(kind)[0]], LONG]
    not_numbers = [
        "two",
        "",
        " ",
        "0x10",
        "\u0661\u0662",
        "1e",
        "None",
        True,
        False,
        [1],
        math.nan,
        math.inf,
        -math.inf,
        LONG,
    ]
    return (
        never
        + {
            int: [*not_numbers, 2.5, "2.5", 10**40, -(10**40), "9" * 5000],
            float: [*not_numbers, "nan", "inf", "1e999", 10**400],
            bool: ["maybe", "", " ", 2, -1, 0.5, [True], math.nan, LONG],
            dict: [5, "text", [1], True],
            str: [5, 2.5, True, "", " ", "a\nb", "a\0b", "\x1b[31m"],
        }[kind]
    )


def out_of_range(field: FieldInfo) -> list[Any]:
    """Values just outside each bound."""
    kind, constraints, _ = parts(field)
    if kind not in (int, float):
        return []
    step, bounds = 1 if kind is int else 1e-6, {}
    for constraint in constraints:
        bounds |= {name: getattr(constraint, name) for name in ("ge", "gt", "le", "lt") if hasattr(constraint, name)}
    assert bounds.keys() & {"ge", "gt"}, "a number needs a lower bound"
    assert kind is float or bounds.keys() & {"le", "lt"}, "a whole number needs an upper bound"
    past = {"ge": -step, "gt": 0, "le": step, "lt": 0}
    return [bound + past[name] for name, bound in bounds.items()]


WRONG_COUNTS = ["1,two", "1,", ",", "0,1", "1;2", "1,1", "1.5", "2,-1", "1,1e9", "1_0", "\u0661", ["x"], {"a": 1}, LONG]
WRONG_NUMBERS = ["1,two", "1,", ",", "-1", "0", "nan", "1,inf", "1,1.0", "0_1", "\u0661", "1e400", [True], LONG]
# What no text of a field may be, beside what no text may be.
WRONG_TEXTS = {
    "model.weights": [LONG, "a/" * 600, "a\tb", "\x7f", "\ud800"],
    "model.name": ["vgg", "a b:Net", "nets.py:", "nets.py:1st", "a..b:Net", ":Net", "\x7f.py:Net", f"{LONG}.py:Net"],
    "data.name": ["../digits", "/etc", "a//b", "a/", "/", ".", "a/../b", "di gits", "dígits", "mnist:3.0.1", LONG],
    "data.data_dir": [LONG, "a/" * 600, "a\tb", "\x7f", "\ud800"],
    "distributed.coordinator": ["host", ":1", "host:", "host:0", "host:65536", "host:\u0661", "host:-1", "a b:1", LONG],
    "gpipe.cuts": [
        "balancd",
        "stage2",
        "stage2/block1,",
        ",",
        "stage\u0662/block1",
        "stage2/block1;stage3/block1",
        [],
        [3],
    ],
    "train.trackers": [
        "tensorbord",
        "Wandb",
        "wandb,",
        ",",
        "wandb;mlflow",
        "mlflow,none",
        "wandb,tensorboard,wandb",
        "none,none",
        [],
        [3],
        LONG,
    ],
    "optimizer.milestones": ["two", "0", "2,", ",", "-1", "2;3", "2,2", "3,2", "1.5", "\u0661", [], [2.5], LONG],
    "train.profile_rounds": [
        "two",
        "0",
        "2,",
        ",",
        "-1",
        "2;3",
        "2,2",
        "none,2",
        "1.5",
        "01",
        "\u0662",
        "1e3",
        [],
        [0],
        LONG,
    ],
    "theory.sweep_filters": WRONG_COUNTS,
    "theory.sweep_disjoint": WRONG_COUNTS,
    "theory.sweep_workers": [*WRONG_COUNTS, "5000"],
    "theory.sweep_xi": [*WRONG_NUMBERS, "1.001"],
    "theory.sweep_eta": [*WRONG_NUMBERS, "1e10"],
}


def nested(key: str, value: Any) -> dict[str, Any]:
    *section, leaf = key.split(".")
    return {section[0]: {leaf: value}} if section else {leaf: value}


@pytest.mark.parametrize(("command", "key"), FIELDS)
def test_a_field_refuses_what_is_no_value_of_it(command, key, place):
    field, directory = FIELDS[command, key], [DIRECTORY[command], "w"]
    values = wrong_types(field) + out_of_range(field) + WRONG_TEXTS.get(key, [])
    for value in values:
        (place / "wrong.yaml").write_text(yaml.safe_dump(nested(key, value)))
        said = refusal(command, "--config", "wrong.yaml", *directory)
        assert said.startswith((f"wrong.yaml: {key}=", "--config wrong.yaml: ")), (value, said)
        assert "\n" not in said, value
        assert len(said) < 900, value
        if isinstance(value, str | int | float) and len(str(value)) < 100:
            as_said = str(value).lower() if isinstance(value, bool) else str(value)
            assert as_said in said or repr(value) in said, (value, said)
        if isinstance(value, str) and "\0" not in value:
            said = refusal(command, f"--{key}={value}", *directory)
            assert said.startswith(f"command line: {key}="), (value, said)
    assert not (place / "w").exists()


def test_every_text_has_rows_of_its_own():
    assert set(WRONG_TEXTS) == {key for (_, key), field in FIELDS.items() if parts(field)[0] is str}
    for command, model in SETTINGS.items():
        assert [key for name, key in FIELDS if name == command] == list(flatten(model()))


@pytest.mark.parametrize(
    ("command", "key"), [name for name, field in FIELDS.items() if parts(field)[0] in (int, float, bool)]
)
def test_a_field_is_given_on_the_command_line_without_its_value(command, key, place):
    assert refusal(command, f"--{key}") == f"argument --{key}: expected one argument; see --help"


@pytest.mark.parametrize("value", [3, 2.5, "nonsense", [1], True, [], b"1"])
@pytest.mark.parametrize(("command", "section"), SECTIONS)
def test_a_section_refuses_what_is_no_mapping(command, section, value, place):
    (place / "wrong.yaml").write_text(yaml.safe_dump({section: value}))
    said = refusal(command, "--config", "wrong.yaml", DIRECTORY[command], "w")
    # A section may have a short form, of which the value is then a wrong one.
    assert said.startswith((f"wrong.yaml: {section}=", f"wrong.yaml: {section}.")), said
    assert "\n" not in said


@pytest.mark.parametrize(("command", "section"), [*SECTIONS, *((command, "") for command in SETTINGS)])
def test_an_unknown_key_is_refused_in_every_section(command, section, place):
    for key in ("xyzzy", 1, None, 2.5, True, "a\nb", LONG):
        (place / "wrong.yaml").write_text(yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
        said = refusal(command, "--config", "wrong.yaml", DIRECTORY[command], "w")
        assert said.startswith("wrong.yaml: unknown key ")
        assert "\n" not in said
    option = f"--{section}.xyzzy" if section else "--xyzzy"
    assert refusal(command, option, "1").startswith(f"unknown option {option}")
