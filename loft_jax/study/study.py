"""A study from its file: read and checked as far as the file alone can tell, before JAX is loaded."""

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any

from loft_jax.config import Config, apply_overrides, read_config, validate_settings
from loft_jax.errors import UserError, did_you_mean, format_literal, format_value
from loft_jax.retrain import retrain_config
from loft_jax.study.fields import CHECKS, KINDS, STEPS, Retraining, Step, StudyFields, TrainStep

Tree = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """A study, checked.

    Attributes:
      source: the file, for messages.
      fields: its keys.
      configs: name of a setting -> the config of its runs; their seeds are those of the jobs.
      steps: name of a step -> the step.
    """

    source: str
    fields: StudyFields
    configs: Mapping[str, Config]
    steps: Mapping[str, Step]

    @classmethod
    def read(cls, name: str, overrides: Mapping[str, str]) -> "Study":
        """Read a file, or the packaged study of that name.

        Args:
          overrides: text given for dotted keys of all runs.

        Raises:
          UserError: a key or a value is wrong, or settings and steps do not fit together.
        """
        return cls.of(read_config(name, "studies"), name, overrides)

    @classmethod
    def of(cls, tree: Tree, source: str, overrides: Mapping[str, str] | None = None) -> "Study":
        """Make a study from nested keys. Raises UserError as `read`."""
        if not tree.get("steps"):
            raise UserError(
                f"{source}: steps: are missing; name what is done, as in steps: {{all: {{kind: train, ...}}}}"
            )
        for section in ("settings", "steps"):
            for name, value in tree[section].items() if isinstance(tree.get(section), dict) else ():
                _check_entry(f"{source}: {section}", name, value)
        fields = validate_settings(tree, source, StudyFields)
        steps = {name: _read_step(f"{source}: steps.{name}", given) for name, given in fields.steps.items()}
        configs = {
            name: _read_setting(source, name, fields.common, given or {}, overrides or {})
            for name, given in fields.settings.items()
        }
        study = cls(source, fields, configs, steps)
        study._check()
        return study

    def _check(self) -> None:
        of_runs = [name for name, step in self.steps.items() if step.kind not in CHECKS]
        if of_runs and not self.configs:
            raise UserError(f"{self.source}: settings: are empty, but the step {of_runs[0]} needs runs; name a setting")
        trains = [name for name, step in self.steps.items() if isinstance(step, TrainStep)]
        if len(trains) > 1:
            raise UserError(
                f"{self.source}: steps.{trains[1]}: trains, as {trains[0]} does; a run is trained once, so name two "
                "settings instead"
            )
        if "report" in self.steps:
            raise UserError(f"{self.source}: steps.report: is the name of the study's own report; rename the step")
        for name, step in self.steps.items():
            for setting in getattr(step, "seconds_of", {}):
                if setting not in self.configs:
                    hint = did_you_mean(setting, self.configs, f"there are {', '.join(self.configs)}")
                    raise UserError(
                        f"{self.source}: steps.{name}.seconds_of: {format_value(setting)} is no setting{hint}"
                    )
        self._check_retraining(self.fields.retraining)

    def _check_retraining(self, retraining: Retraining) -> None:
        label = f"{self.source}: retraining"
        if retraining.least_rounds is not None:
            if retraining.rounds is None:
                raise UserError(f"{label}.least_rounds={retraining.least_rounds}: needs retraining.rounds; give both")
            if retraining.least_rounds > retraining.rounds:
                raise UserError(
                    f"{label}.least_rounds={retraining.least_rounds}: must be at most retraining.rounds="
                    f"{retraining.rounds}; try {retraining.rounds}"
                )
        if "train.rounds" in self.retrain_overrides:
            raise UserError(f"{label}.settings: train.rounds is set by retraining.rounds; leave it out")
        for config in self.configs.values():
            try:
                retrain_config(config, self.retrain_overrides)
            except UserError as error:
                raise UserError(f"{label}.settings: {str(error).removeprefix('command line: ')}") from None

    @property
    def retrain_overrides(self) -> dict[str, str]:
        """Dotted key -> text of every setting of the retrainings."""
        return {key: _option_text(value) for key, value in _flatten(self.fields.retraining.settings).items()}

    @property
    def retraining(self) -> Tree:
        """Dotted key -> value of what, beside the steps, can change the result of a retraining."""
        rounds = {"retraining.rounds": self.fields.retraining.rounds}
        named = {k: v for k, v in self.retrain_overrides.items() if k not in Config().resumable_keys()}
        return rounds | {f"retraining.settings.{key}": value for key, value in named.items()}


def _check_entry(label: str, name: Any, value: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,60}", name):
        raise UserError(
            f"{label}: {format_value(name)}: a name is at most 60 letters, digits and underscores; rename it"
        )
    if not isinstance(value, dict | NoneType):
        raise UserError(f"{label}.{name}={format_literal(value)}: must be a mapping of keys to values")


def _read_step(label: str, given: Tree) -> Step:
    kind = given.get("kind")
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS)
        raise UserError(f"{label}: kind={format_value(kind)}: must be one of {', '.join(KINDS)}{hint}")
    if "seconds" not in given:
        raise UserError(f"{label}: seconds: is missing; give about how many seconds it takes, as in seconds: 60")
    return validate_settings(given, label, STEPS[kind])


def _read_setting(source: str, name: str, common: Tree, given: Tree, overrides: Mapping[str, str]) -> Config:
    label = f"{source}: settings.{name}"
    for place, settings in ((f"{source}: common", common), (label, given)):
        if "seed" in settings:
            seed = format_literal(settings["seed"])
            raise UserError(f"{place}: seed={seed}: the seeds of runs are those of `seeds`; leave it out")
    base = given.get("config", common.get("config"))
    if base is not None and not isinstance(base, str):
        raise UserError(f"{label}: config={format_literal(base)}: must be the name of a file or a packaged config")
    try:
        merged = {} if base is None else read_config(base)
    except UserError as error:
        raise UserError(f"{label}: {str(error).replace('--config', 'config', 1)}") from None
    for settings in (common, given):
        _merge(merged, {key: value for key, value in settings.items() if key != "config"})
    return apply_overrides(merged, dict(overrides), label)


def _merge(into: Tree, settings: Tree) -> None:
    for key, value in settings.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)


def _flatten(settings: Tree, prefix: str = "") -> Tree:
    flat: Tree = {}
    for key, value in settings.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _option_text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
