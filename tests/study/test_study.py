"""A study's file: what it may say, and what is refused, with the key, the value, the rule and what to do."""

import pytest
import yaml
from helpers import CONFIGS
from helpers.settings_helpers import refusal
from helpers.studies import STUDY, changed

from loft_jax.config import read_config
from loft_jax.config.loading import packaged_configs
from loft_jax.study.fields import STEPS, StudyFields, describe_keys
from loft_jax.study.jobs import expand
from loft_jax.study.study import Study


def test_settings_are_those_of_the_config_then_common_ones_then_their_own(tmp_path):
    (tmp_path / "base.yaml").write_text("loft: {workers: 2, local_steps: 3}\nprecision: bfloat16\n")
    study = Study.of(
        changed(
            common={"config": str(tmp_path / "base.yaml"), "loft": {"local_steps": 5}, "train": {"rounds": 4}},
            settings={"a": None, "b": {"loft": {"workers": 8}}, "c": {"config": "digits"}},
            steps__pretrain__seconds_of=None,
        ),
        "s.yaml",
        {"data.batch_size": "16"},
    )
    loft = {name: (config.loft.workers, config.loft.local_steps) for name, config in study.configs.items()}
    assert loft == {"a": (2, 5), "b": (8, 5), "c": (4, 5)}
    assert [config.precision for config in study.configs.values()] == ["bfloat16", "bfloat16", "float32"]
    assert {config.data.batch_size for config in study.configs.values()} == {16}
    assert study.configs["c"].mesh.cpu_devices == 4


RULES = {
    "unknown key": (changed(setings={}), "s.yaml: unknown key setings; did you mean settings?; see --help"),
    "no steps": (changed(steps=None), "s.yaml: steps: are missing; name what is done, as in steps: {all: {kind: train"),
    "empty steps": (changed(steps={}), "s.yaml: steps: are missing"),
    "a list of steps": (changed(steps=[1]), "s.yaml: steps=[1]: must be a valid dictionary"),
    "a step that is none": (changed(steps__x=5), "s.yaml: steps.x=5: must be a mapping of keys to values"),
    "a setting that is none": (changed(settings__x=5), "s.yaml: settings.x=5: must be a mapping of keys to values"),
    "a number as a name": (changed(settings={5: {}}), "s.yaml: settings: 5: a name is at most 60 letters, digits"),
    "a name with a blank": (
        changed(steps={"a b": {"kind": "bench", "seconds": 1}}),
        "s.yaml: steps: a b: a name is at most 60 letters, digits and underscores; rename it",
    ),
    "no kind": (changed(steps__x={"seconds": 1}), "s.yaml: steps.x: kind=null: must be one of test, bench, train, ti"),
    "misspelt kind": (
        changed(steps__x={"kind": "trian", "seconds": 1}),
        "s.yaml: steps.x: kind=trian: must be one of test, bench, train, tickets, retrain; did you mean train?",
    ),
    "no seconds": (changed(steps__x={"kind": "bench"}), "s.yaml: steps.x: seconds: is missing; give about how many"),
    "no time": (changed(steps__speed__seconds=0), "s.yaml: steps.speed: seconds=0: must be greater than 0"),
    "unknown key of a step": (
        changed(steps__at80__ratois=[0.8]),
        "s.yaml: steps.at80: unknown key ratois; did you mean ratios?; see --help",
    ),
    "a ratio out of range": (changed(steps__at80__ratios=[1.5]), "s.yaml: steps.at80: ratios=1.5: must be less than 1"),
    "no ratio": (changed(steps__at80__ratios=[]), "s.yaml: steps.at80: ratios=[]: list should have at least 1 item"),
    "misspelt mode": (changed(steps__at80__modes=["rewnd"]), "s.yaml: steps.at80: modes=rewnd: must be one of rewind"),
    "seconds of no setting": (
        changed(steps__pretrain__seconds_of={"lotf4": 3}),
        "s.yaml: steps.pretrain.seconds_of: lotf4 is no setting; did you mean loft4?",
    ),
    "two trainings": (
        changed(steps__again={"kind": "train", "seconds": 1}),
        "s.yaml: steps.again: trains, as pretrain does; a run is trained once, so name two settings instead",
    ),
    "a step named like the report": (
        changed(steps__report={"kind": "bench", "seconds": 1}),
        "s.yaml: steps.report: is the name of the study's own report; rename the step",
    ),
    "no settings": (changed(settings=None), "s.yaml: settings: are empty, but the step pretrain needs runs"),
    "unknown setting": (
        changed(settings__loft4={"loft": {"wrokers": 2}}),
        "s.yaml: settings.loft4: unknown key loft.wrokers; did you mean loft.workers?; see --help",
    ),
    "wrong common setting": (changed(common__model__width=0), "s.yaml: settings.loft4: model.width=0: must be greater"),
    "wrong rule": (
        changed(settings__sgd={"mesh": {"data": 3}}),
        "s.yaml: settings.sgd: data.batch_size=32: must be a multiple of mesh.data=3; try 33",
    ),
    "a seed in a setting": (
        changed(settings__sgd__seed=3),
        "s.yaml: settings.sgd: seed=3: the seeds of runs are those",
    ),
    "a seed in common": (changed(common__seed=3), "s.yaml: common: seed=3: the seeds of runs are those of `seeds`"),
    "no such config": (
        changed(common__config="digit"),
        "s.yaml: settings.loft4: config digit: neither a file nor a packaged config; did you mean digits?",
    ),
    "a config that is no name": (changed(common__config=3), "s.yaml: settings.loft4: config=3: must be the name of a"),
    "a boolean seed": (changed(seeds=[True]), "s.yaml: seeds=[True]: a boolean is not valid here"),
    "no seed": (changed(seeds=[]), "s.yaml: seeds=[]: list should have at least 1 item"),
    "a negative seed": (changed(seeds=[-1]), "s.yaml: seeds=-1: must be greater than or equal to 0; try 0"),
    "no budget": (changed(budget=0), "s.yaml: budget=0: must be greater than 0"),
    "a length without its most": (
        changed(retraining={"least_rounds": 3}),
        "s.yaml: retraining.least_rounds=3: needs retraining.rounds; give both",
    ),
    "a least that is more": (
        changed(retraining={"least_rounds": 5, "rounds": 4}),
        "s.yaml: retraining.least_rounds=5: must be at most retraining.rounds=4; try 4",
    ),
    "a length in the settings": (
        changed(retraining={"settings": {"train": {"rounds": 4}}}),
        "s.yaml: retraining.settings: train.rounds is set by retraining.rounds; leave it out",
    ),
    "a setting that no retraining has": (
        changed(retraining={"settings": {"loft": {"workers": 2}}}),
        "s.yaml: retraining.settings: --loft.workers: cannot be changed for a retraining: a ticket is retrained by pl",
    ),
    "a wrong setting of retrainings": (
        changed(retraining={"settings": {"optimizer": {"learning_rat": 2}}}),
        "s.yaml: retraining.settings: unknown key optimizer.learning_rat; did you mean optimizer.learning_rate?",
    ),
    "no such step": (
        changed(order=["sped"]),
        "s.yaml: order, entry 1: sped is no step that is done once; did you mean sp",
    ),
    "a step of a run alone": (
        changed(order=["at80"]),
        "s.yaml: order, entry 1: at80 is no step that is done once; the",
    ),
    "a number in the order": (changed(order=[3]), "s.yaml: order, entry 1: 3: must be the name of a step that is done"),
    "an unknown key of an entry": (
        changed(order=["speed", {"seed": [0]}]),
        "s.yaml: order, entry 2: unknown key seed; did you mean seeds?; see --help",
    ),
    "no such setting": (
        changed(order=[{"settings": ["lotf4"]}]),
        "s.yaml: order, entry 1: lotf4 is no setting; did you mean loft4?",
    ),
    "a check among the steps of a run": (
        changed(order=[{"steps": ["speed"]}]),
        "s.yaml: order, entry 1: speed is no step of a run; there are pretrain, tickets, at80",
    ),
    "a job twice": (
        changed(order=[{"seeds": [0]}, {"settings": ["sgd"]}]),
        "s.yaml: order: the job sgd-seed0-pretrain is there twice, in entries 1 and 2; leave one of them out",
    ),
    "a check twice": (changed(order=["speed", "speed"]), "s.yaml: order: the job speed is there twice, in entries 1 a"),
    "a seed twice": (changed(seeds=[1, 1]), "s.yaml: order: the job loft4-seed1-pretrain is there twice, in entries 2"),
    "tickets of no run": (
        changed(order=[{"steps": ["tickets"]}, {"steps": ["pretrain"]}]),
        "s.yaml: order, entry 1: tickets of loft4, seed 0: needs its run, which is not trained before it",
    ),
    "a retraining without tickets": (
        changed(order=[{"steps": ["pretrain", "at80"]}]),
        "s.yaml: order, entry 1: at80 of loft4, seed 0: needs tickets of 0.8 (group, l2), which are not drawn before",
    ),
    "a retraining of other tickets": (
        changed(steps__at80__scope="global"),
        "needs tickets of 0.8 (global, l2), which are not drawn before it (loft4-seed0-tickets draws 0.8, 0.5 (group",
    ),
}


@pytest.mark.parametrize(("tree", "message"), RULES.values(), ids=RULES)
def test_a_study_that_cannot_be_done_is_refused(tree, message):
    said = refusal(lambda: expand(Study.of(tree, "s.yaml")))
    assert message in said
    assert said.startswith("s.yaml: ")


def test_a_study_that_is_named_by_its_file_or_packaged_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    assert set(Study.read("mine.yaml", {}).configs) == {"loft4", "sgd"}
    assert refusal(Study.read, "rehersal", {}) == (
        "--config rehersal: neither a file nor a packaged config; did you mean rehearsal?"
    )
    assert packaged_configs("studies").keys() == {path.stem for path in (CONFIGS / "studies").glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(packaged_configs("studies")))
def test_a_packaged_study_is_one(name):
    assert expand(Study.of(read_config(name, "studies"), name))


def test_the_help_names_every_key():
    text = " ".join(describe_keys().split())
    for model in (StudyFields, *STEPS.values()):
        for key, field in model.model_fields.items():
            assert field.description or key in ("retraining", "report")
            assert field.description is None or key == "kind" or field.description in text, key
