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
