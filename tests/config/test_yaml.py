"""A YAML file means what the same words mean on the command line."""

import pytest

from loft_jax.config.loading import apply_overrides, read_yaml
from loft_jax.errors import UserError


def read(tmp_path, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return apply_overrides(read_yaml(path), {}, "settings.yaml")


def test_a_dotted_key_is_that_of_its_section(tmp_path):
    assert read(tmp_path, "loft.workers: 2\nloft: {local_steps: 3}").loft.workers == 2
    with pytest.raises(UserError, match=r"loft\.workers: is given twice, also under loft; give it once"):
        read(tmp_path, "loft.workers: 2\nloft: {workers: 3}")
    with pytest.raises(UserError, match=r"unknown key loft\.wrkers; did you mean loft\.workers"):
        read(tmp_path, "loft.wrkers: 2")


@pytest.mark.parametrize("text", ["010", "12", "1_000", "0x10", "1:30", "0o10"])
def test_a_number_means_the_same_in_a_file_and_as_an_option(tmp_path, text):
    def value(call):
        try:
            return call().train.rounds
        except UserError:
            return "refused"

    given = value(lambda: apply_overrides({}, {"train.rounds": text}, "command line"))
    assert value(lambda: read(tmp_path, f"train:\n  rounds: {text}\n")) == given


@pytest.mark.parametrize("text", ["010", "12", "1_000", "0x10", "1:30", "0o10", "1e3", "yes", "'010'", "[1, 010]"])
def test_options_of_a_network_mean_the_same_in_a_file_and_as_an_option(tmp_path, text):
    own = {"model.name": "net.py:Net"}
    (tmp_path / "c.yaml").write_text(f"model: {{name: 'net.py:Net', options: {{depth: {text}}}}}")
    in_file = apply_overrides(read_yaml(tmp_path / "c.yaml"), {}, "c.yaml").model.options
    given = apply_overrides({}, own | {"model.options": f"{{depth: {text}}}"}, "command line").model.options
    assert in_file == given


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{depth: 3, depth: 4}", "key 'depth' is given twice"),
        ("{depth: 2020-01-02}", "depth is datetime.date(2020, 1, 2), a date; put it in quotes"),
        ("{depth: .nan}", "depth is nan, a float"),
        ("{depth: [1, !!set {a}]}", "a list; put it in quotes"),
        ("{depth: 2020-13-02}", "must be a mapping of names to values"),
    ],
)
def test_options_that_cannot_be_written_down_are_refused(text, message):
    with pytest.raises(UserError) as caught:
        apply_overrides({}, {"model.name": "net.py:Net", "model.options": text}, "command line")
    assert message in str(caught.value)
