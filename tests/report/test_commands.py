"""The commands on a report's page: they can be pasted, and ask for what the report shows."""

import json
import shlex

import pytest
import yaml
from helpers.fake_runs import complete_run, fake_levels, fake_retraining, fake_run, fake_search, read

from loft_jax.config import CommandLine
from loft_jax.filters import Rules, rules_fields
from loft_jax.lottery.__main__ import add_options as lottery_options
from loft_jax.lottery.settings import LotteryConfig
from loft_jax.report.commands import commands_part
from loft_jax.retrain.__main__ import add_options as retrain_options
from loft_jax.retrain.settings import retrain_config
from loft_jax.storage.records import write_object
from loft_jax.storage.run_directory import RunDirectory
from loft_jax.tickets.__main__ import add_options as search_options
from loft_jax.tickets.options import rules_of


def words_of(line, command):
    """The words of a command, as a shell reads them."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", f"loft_jax.{command}"]
    return words[3:]


def parsed(line, command, add_options):
    reader = CommandLine(f"python -m loft_jax.{command}", "Something.", reads_run="one")
    add_options(reader.parser)
    return reader.parse_overrides(words_of(line, command))


def test_the_commands_make_what_the_report_shows(tmp_path):
    directory = complete_run(tmp_path / "it's a run")
    out = tmp_path / "the report"
    part = commands_part([read(directory)], [], [directory.path], out)
    train, search, *retrainings, cost, report = part.commands
    path = str(directory.path)
    assert words_of(train, "train") == ["--config", f"{path}/config.yaml", "--workdir", path]
    options, _ = parsed(search, "tickets", search_options)
    assert (options.run, options.ratios, options.scope, options.norm) == (path, [0.8, 0.5, 0.0], "group", "l2")
    assert options.reference is None
    found = {}
    for line in retrainings:
        options, overrides = parsed(line, "retrain", retrain_options)
        assert overrides == {}
        found |= {(name, *options.mode): options.seeds for name in options.ticket}
    assert found == {
        ("r12-group-l2-0", "rewind"): [0, 1],
        ("r12-group-l2-0.8", "rewind"): [0, 1],
        ("r12-group-l2-0.8", "random"): [0, 1],
        ("r12-group-l2-0.5", "rewind"): [0],
        ("r4-group-l2-0.8", "rewind"): [0, 1],
    }
    assert shlex.split(cost)[-2:] == [">", f"{path}/cost.csv"]
    assert " > " in cost
    assert words_of(report, "report") == [path, "--out", str(out)]


def test_settings_of_a_retraining_that_are_not_its_runs_are_in_its_command(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_retraining(directory, 0.5, [0.9])
    overrides = {"optimizer.learning_rate": "0.01", "data.augment": "false", "train.eval_every": "3"}
    config = retrain_config(directory.read_config(), overrides)
    path = directory.retrain / "r12-group-l2-0.5/rewind/seed0/config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()))
    summary = RunDirectory(path.parent).summary()
    RunDirectory(path.parent).write_summary(summary | {"settings": config.model_copy(update={"seed": 0}).hash()})
    _, line, _ = commands_part([read(directory)], [], [], tmp_path).commands
    _, given = parsed(line, "retrain", retrain_options)
    assert retrain_config(directory.read_config(), given) == config


def test_rules_and_reference_of_a_search_are_in_its_command(tmp_path):
    directory = fake_run(tmp_path / "run")
    fake_search(directory)
    rules = Rules(ratios=(("stage1/*", 0.3),), keep_whole=("*/block1",), at_least=2, round_to=8, groups="paper")
    written = {"reference_round": 4, **rules_fields(rules)}
    write_object(directory.search, json.loads(directory.search.read_text()) | written)
    line = commands_part([read(directory)], [], [], tmp_path).commands[1]
    options, _ = parsed(line, "tickets", search_options)
    assert rules_of(options) == rules
    assert options.reference == f"{directory.path}@4"


@pytest.mark.parametrize("name", ["-run", "~run", "a b", "it's"])
def test_the_command_of_a_path_in_the_current_directory_takes_it_for_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = fake_run(name if name[0] != "~" else f"./{name}")
    line = commands_part([read(directory)], [], [directory.path], directory.path).commands[0]
    (path,) = [word for word in words_of(line, "train") if not word.endswith("config.yaml") and word[:2] != "--"]
    assert path in (name, f"./{name}")
    assert path[0] not in "-~"


def test_the_command_of_a_lottery_has_its_settings_and_seeds(tmp_path):
    directory = fake_levels(tmp_path / "a lottery", {"ticket": [[0.8, 0.9]] * 2})
    (directory.path / "lottery.yaml").write_text(yaml.safe_dump({"levels": 2, "rates": "*=0.3,fc=0.1"}))
    line = commands_part([], [directory.path], [directory.path], tmp_path).commands[0]
    reader = CommandLine("python -m loft_jax.lottery", "Something.", LotteryConfig)
    lottery_options(reader.parser)
    options, config = reader.parse(words_of(line, "lottery"))
    assert (options.seeds, options.workdir) == ([0, 1], str(directory.path))
    assert (config.lottery.levels, config.lottery.rates) == (2, "*=0.3,fc=0.1")
    assert config.training(0) == directory.read_config()
    (directory.path / "lottery.yaml").write_text("[")
    assert commands_part([], [directory.path], [directory.path], tmp_path).commands == [
        line_of_report(directory, tmp_path)
    ]


def line_of_report(directory, out):
    return f"python -m loft_jax.report {shlex.quote(str(directory.path))} --out {out}"
