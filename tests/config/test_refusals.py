"""Settings that are refused: each by one message that names key, value, rule and the nearest choice."""

import pytest
from helpers.settings_helpers import parse, refusal

from loft_jax.config import model
from loft_jax.config.loading import read_yaml, validate_settings

MODELS = f"{', '.join(model.MODELS)}, or package.module:callable"


# A YAML text, and the whole of what must be said about it.
WRONG_SETTINGS = {
    "misspelt": ("sede: 1", "unknown key sede; did you mean seed?; see --help"),
    "misspelt section": ("lotf: {workers: 2}", "unknown key lotf; did you mean loft?; see --help"),
    "misspelt in section": ("loft: {wrokers: 2}", "unknown key loft.wrokers; did you mean loft.workers?; see --help"),
    "unlike any key": ("xyzzy: 1", "unknown key xyzzy; see --help"),
    "wrong section": (
        "optimizer: {workers: 2}",
        "unknown key optimizer.workers; did you mean loft.workers?; see --help",
    ),
    "an option of a network": (
        "model: {hidden_layers: 3}",
        "unknown key model.hidden_layers; it is an option of mlp: give model.options, as '{hidden_layers: ...}'; see "
        "--help",
    ),
    "no section": ("workers: 2", "unknown key workers; did you mean loft.workers?; see --help"),
    "text for int": (
        "loft: {workers: two}",
        "loft.workers='two': must be a valid integer, unable to parse string as an integer",
    ),
    "fraction for int": (
        "loft: {workers: 2.5}",
        "loft.workers=2.5: must be a valid integer, got a number with a fractional part",
    ),
    "bool for int": ("loft: {workers: true}", "loft.workers=true: a boolean is not valid here"),
    "bool for optional int": ("model: {width: yes}", "model.width=true: a boolean is not valid here"),
    "bool for float": ("optimizer: {momentum: no}", "optimizer.momentum=false: a boolean is not valid here"),
    "text for optional int": (
        "model: {width: big}",
        "model.width='big': must be a valid integer, unable to parse string as an integer",
    ),
    "text for float": (
        "optimizer: {momentum: big}",
        "optimizer.momentum='big': must be a valid number, unable to parse string as a number",
    ),
    "text for bool": (
        "data: {augment: maybe}",
        "data.augment='maybe': must be a valid boolean, unable to interpret input",
    ),
    "number for text": ("data: {name: 5}", "data.name=5: must be text; put it in quotes"),
    "number for section": ("loft: 3", "loft=3: must be a mapping of keys to values; leave loft out for its defaults"),
    "list for section": ("loft: [1]", "loft=[1]: must be a mapping of keys to values; leave loft out for its defaults"),
    "list for int": ("seed: [1]", "seed=[1]: must be a valid integer"),
    "empty text": ("data: {name: ''}", "data.name='': string should have at least 1 character"),
    "below ge": ("train: {eval_every: -3}", "train.eval_every=-3: must be greater than or equal to 1; try 1"),
    "below ge of a float": (
        "optimizer: {weight_decay: -1}",
        "optimizer.weight_decay=-1: must be greater than or equal to 0; try 0.0",
    ),
    "below ge of an optional": ("mesh: {worker: 0}", "mesh.worker=0: must be greater than or equal to 1; try 1"),
    "at gt": ("optimizer: {learning_rate: 0}", "optimizer.learning_rate=0: must be greater than 0"),
    "at lt": ("optimizer: {momentum: 1}", "optimizer.momentum=1: must be less than 1"),
    "at lt of an int": ("seed: 2147483648", "seed=2147483648: must be less than 2147483648"),
    "infinite": ("optimizer: {learning_rate: .inf}", "optimizer.learning_rate=inf: must be a finite number"),
    "not a number": ("optimizer: {weight_decay: .nan}", "optimizer.weight_decay=nan: must be a finite number"),
    "no local steps": ("loft: {local_steps: 0}", "loft.local_steps=0: must be greater than or equal to 1; try 1"),
    "no rounds": ("train: {rounds: 0}", "train.rounds=0: must be greater than or equal to 1; try 1"),
    "unknown model": (
        "model: {name: resnet19}",
        f"model.name=resnet19: must be one of {MODELS}; did you mean resnet18?",
    ),
    "unlike any model": ("model: {name: qqq}", f"model.name=qqq: must be one of {MODELS}"),
    "misspelt choice": (
        "loft: {partition: papr}",
        "loft.partition=papr: must be one of paper, all, none; did you mean paper?",
    ),
    "null for a choice": (
        "loft: {partition: null}",
        "loft.partition=null: must be one of paper, all, none; did you mean none?",
    ),
    "batch over mesh.data": (
        "{data: {batch_size: 34}, mesh: {data: 4}}",
        "data.batch_size=34: must be a multiple of mesh.data=4; try 32",
    ),
    "batch below mesh.data": (
        "{data: {batch_size: 1}, mesh: {data: 4}}",
        "data.batch_size=1: must be a multiple of mesh.data=4; try 4",
    ),
    "workers over mesh.worker": (
        "{loft: {workers: 6}, mesh: {worker: 4}}",
        "mesh.worker=4: must divide loft.workers=6; try 3",
    ),
    "GPipe and LoFT": (
        "{loft: {workers: 4}, gpipe: {stages: 2}}",
        "gpipe.stages=2: is GPipe, which trains the full CNN, and loft.workers=4 is LoFT; use loft.workers=1, or leave "
        "gpipe.stages out",
    ),
    "micro-batches over the batch": (
        "{data: {batch_size: 32}, gpipe: {stages: 2, microbatches: 5}}",
        "gpipe.microbatches=5: must divide data.batch_size=32; try 4",
    ),
    "more micro-batches than images": (
        "{data: {batch_size: 8}, gpipe: {stages: 2, microbatches: 100}}",
        "gpipe.microbatches=100: must divide data.batch_size=8; try 8",
    ),
    "no stages": ("gpipe: {stages: 0}", "gpipe.stages=0: must be greater than or equal to 1; try 1"),
    "misspelt cuts": (
        "gpipe: {stages: 2, cuts: balancd}",
        "gpipe.cuts=balancd: 'balancd' is none of balanced, paper, or blocks as in stage2/block1,stage3/block1; did "
        "you mean balanced?",
    ),
    "cuts that are no blocks": (
        "gpipe: {stages: 2, cuts: [3]}",
        "gpipe.cuts=[3]: '3' is none of balanced, paper, or blocks as in stage2/block1,stage3/block1; try balanced",
    ),
    "a misspelt block": (
        "gpipe: {stages: 3, cuts: 'stage1/block1, stage2/blok1'}",
        "gpipe.cuts=stage1/block1, stage2/blok1: 'stage2/blok1' is none of balanced, paper, or blocks as in "
        "stage2/block1,stage3/block1; did you mean stage2/block1?",
    ),
    "too few cuts": (
        "gpipe: {stages: 4, cuts: stage2/block1}",
        "gpipe.cuts=stage2/block1: must name 3 blocks for gpipe.stages=4, not 1; try gpipe.stages=2, or "
        "gpipe.cuts=balanced",
    ),
    "a stage on two devices": (
        "{gpipe: {stages: 2}, mesh: {data: 2}}",
        "mesh.data=2: a stage of GPipe is one device; leave mesh.data out",
    ),
    "a misspelt mode": ("distributed: auot", "distributed.mode=auot: must be one of off, auto; did you mean auto?"),
    "a boolean mode": ("distributed: on", "distributed=true: a boolean is not valid here"),
    "no port": (
        "distributed: {coordinator: host}",
        "distributed.coordinator=host: must be HOST:PORT, with a port from 1 to 65535; try 10.0.0.1:8476",
    ),
    "a port out of range": (
        "distributed: {coordinator: 'host:65536'}",
        "distributed.coordinator=host:65536: must be HOST:PORT, with a port from 1 to 65535; try 10.0.0.1:8476",
    ),
    "a coordinator alone": (
        "distributed: {coordinator: 'host:1'}",
        "distributed.coordinator=host:1: needs distributed.processes and distributed.process_id; give all three, "
        "or distributed.mode=auto",
    ),
    "a coordinator, and auto": (
        "distributed: {mode: auto, coordinator: 'host:1', processes: 2, process_id: 0}",
        "distributed.mode=auto: detects what distributed.coordinator=host:1 sets; leave one of them out",
    ),
    "a process past the last": (
        "distributed: {coordinator: 'host:1', processes: 2, process_id: 2}",
        "distributed.process_id=2: must be below distributed.processes=2, because it counts from 0; try 1",
    ),
    "misspelt sync": (
        "loft: {sync: exchang}",
        "loft.sync=exchang: must be one of psum, exchange; did you mean exchange?",
    ),
}


@pytest.mark.parametrize(("text", "message"), WRONG_SETTINGS.values(), ids=WRONG_SETTINGS)
def test_a_wrong_setting_is_refused_with_file_key_value_rule_and_nearest_choice(write, text, message):
    path = write(text)
    assert refusal(parse, "--config", path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--loft.workers", "two", "loft.workers='two': must be a valid integer"),
        ("--loft.workers", "0", "loft.workers='0': must be greater than or equal to 1; try 1"),
        ("--seed", "-1", "seed='-1': must be greater than or equal to 0; try 0"),
        ("--seed", "true", "seed=true: a boolean is not valid here"),
        ("--loft.partition", "al", "loft.partition=al: must be one of paper, all, none; did you mean all?"),
        ("--model.name", "resnet81", f"model.name=resnet81: must be one of {MODELS}; did you mean resnet18?"),
        ("--mesh.worker", "3", "mesh.worker=3: must divide loft.workers=4; try 2"),
        ("--data.name", "null", "data.name=null: must be text"),
    ],
)
def test_a_wrong_override_is_refused_like_a_wrong_setting(option, value, message):
    assert refusal(parse, option, value).startswith(f"command line: {message}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--loft.wrokers", "2"], "unknown option --loft.wrokers; did you mean --loft.workers?; see --help"),
        (["--lof.workers=2"], "unknown option --lof.workers; did you mean --loft.workers?; see --help"),
        (["--loft.rounds", "2"], "unknown option --loft.rounds; did you mean --train.rounds?; see --help"),
        (["--confg", "x.yaml"], "unknown option --confg; did you mean --config?; see --help"),
        (["--loft.work", "2"], "unknown option --loft.work; did you mean --loft.workers?; see --help"),
        (
            ["--model.norm", "batch"],
            "unknown option --model.norm; it is an option of mlp: give model.options, as '{norm: ...}'; see --help",
        ),
        (["run.yaml"], "argument 'run.yaml' is not expected here; options start with --, see --help"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_option(argv, message):
    assert refusal(parse, *argv) == message


def test_several_errors_are_reported_at_once():
    wrong = {"sede": 1, "loft": {"workers": 0, "partition": "x"}, "optimizer": {"learning_rate": "a"}}
    lines = refusal(validate_settings, wrong, "run.yaml").split("\n")
    assert len(lines) == 4
    for key in ("unknown key sede", "loft.workers=0", "loft.partition=x", "optimizer.learning_rate='a'"):
        assert sum(line.lstrip().startswith(f"run.yaml: {key}") for line in lines) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loft: [", "is not valid YAML: while parsing a flow node"),
        ("loft: {workers: 2", "is not valid YAML"),
        ("a\tb: 1", "is not valid YAML"),
        ("seed: !!python/object:os.system 1", "is not valid YAML: could not determine a constructor"),
        ("- 1\n- 2", "must be a mapping of keys to values, not a list"),
        ("5", "must be a mapping of keys to values, not a int"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice in \"<unicode string>\", line 2"),
        ("loft:\n  workers: 1\n  workers: 2", "key 'workers' is given twice in \"<unicode string>\", line 3"),
    ],
)
def test_yaml_that_is_no_mapping_of_distinct_keys_is_refused(write, text, message):
    path = write(text)
    said = refusal(parse, "--config", path)
    assert said.startswith(f"--config {path}: ")
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "text",
    [
        "? [1]\n: 1",
        "? {a: 1}\n: 1",
        "seed: 2020-13-45",
        "seed: !!int x",
        "seed: !!int ''",
        "seed: !!bool x",
        "seed: !!timestamp x",
    ],
)
def test_yaml_that_python_cannot_represent_is_refused(write, text):
    assert "is not valid YAML" in refusal(parse, "--config", write(text))


def test_a_value_that_yaml_blows_up_is_not_printed_whole(write):
    lists = "\n".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10))
    said = refusal(parse, "--config", write(f"l0: &l0 [x]\n{lists}\nseed: *l9"))
    assert ": seed=[[" in said
    assert len(said) < 3000


def test_a_yaml_merge_key_is_read(write):
    text = "loft: &common {workers: 8}\nmesh:\n  <<: {worker: 2}\n  data: 4"
    assert read_yaml(write(text)) == {"loft": {"workers": 8}, "mesh": {"worker": 2, "data": 4}}


def test_a_negative_number_in_exponent_notation_is_refused_like_any_other():
    assert "optimizer.learning_rate='-1e-3': must be greater than 0" in refusal(
        parse, "--optimizer.learning_rate", "-1e-3"
    )


def test_an_empty_config_path_is_refused():
    assert refusal(parse, "--config", "").startswith("--config ")


def test_an_option_without_its_value_is_refused_with_one_line():
    assert "--loft.workers" in refusal(parse, "--loft.workers")


def test_a_missing_file_is_named_with_the_nearest_one(write, tmp_path):
    near = write("", "digits.yaml")
    write("", "imagenet.yaml")
    missing = tmp_path / "digit.yaml"
    assert refusal(parse, "--config", missing) == f"--config {missing}: no such file; did you mean {near}?"


def test_a_file_missing_from_a_missing_directory_is_named(tmp_path):
    path = tmp_path / "nowhere" / "run.yaml"
    assert refusal(parse, "--config", path) == f"--config {path}: no such file"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff")
    for path in (tmp_path, tmp_path / "latin.yaml"):
        assert refusal(parse, "--config", path).startswith(f"--config {path}: cannot be read")


def test_a_path_that_ends_in_a_blank_is_said_in_quotes():
    assert refusal(parse, "--config", "run.yaml ").startswith("--config 'run.yaml ': no such file")


def test_a_value_above_its_bound_is_refused_with_the_bound(write):
    path = write("model: {width: 65537}")
    assert (
        refusal(parse, "--config", path) == f"{path}: model.width=65537: must be less than or equal to 65536; try 65536"
    )
