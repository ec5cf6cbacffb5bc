"""Whatever is typed: configs and command lines in which a few characters, words or values have been replaced."""

import random

import yaml
from helpers.refused import SETTINGS, TICKET, AcceptedError, refusal

from loft_jax.config.config import Config, flatten


def test_whatever_is_typed_is_accepted_or_refused_with_one_message(place):
    rng = random.Random(0)
    for _ in range(FUZZED):
        command, arguments, text = mutated(rng)
        (place / "fuzzed.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            said = refusal(command, *arguments)
        except AcceptedError:
            continue
        except BaseException as error:
            raise AssertionError(f"{command} {arguments} with {text!r}") from error
        assert len(said) < 20_000


FUZZED = 150
PIECES = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "null",
    "true",
    "~",
    "nan",
    ".inf",
    "1e9",
    "two",
    "[1]",
    "{a: 1}",
    "[",
    "'",
    '"',
    "#",
]
PIECES += [
    "&a",
    "*a",
    "!!int",
    "---",
    "<<",
    "? ",
    "a: b: c",
    "\n",
    "\t",
    "\0",
    "\x85",
    "\ud800",
    "\u0663",
    "é",
    "x" * 5000,
    "9" * 40,
]
PIECES += [
    "--",
    "-",
    "=",
    "%",
    "${HOME}",
    "../",
    "/",
    "balanced",
    "stage1/block1",
    "auto",
    "digits",
    "cifar10",
    "2001-01-01",
]


def mutated(rng: random.Random) -> tuple[str, list[str], str]:
    """A command, its arguments and a config file, of which a few characters, words or values have been replaced."""

    command, given = rng.choice(
        [
            ("train", ["--config", "fuzzed.yaml", "--dry_run"]),
            ("tickets", ["run", "--ratios", "0.5", "--rounds", "0", "--scope", "group"]),
            ("retrain", ["run", "--ticket", TICKET, "--mode", "rewind", "--seeds", "1"]),
            ("retrain", ["run", "--every", "2", "--ratio", "0.5", "--norm", "l1"]),
            ("cost", ["--config", "fuzzed.yaml", "--workers", "2", "--no_compile"]),
            ("plan", ["--config", "fuzzed.yaml", "--topology", "cpu:4", "--memory_gb", "1"]),
            ("report", ["run", "--out", "out"]),
            ("theory", ["--config", "fuzzed.yaml", "--out", "theory"]),
            ("bench", ["--pairs", "3", "--json", "bench.json"]),
        ]
    )
    defaults = SETTINGS.get(command, Config)()

    def value(key: str) -> str:
        default = flatten(defaults)[key]
        valid = "null" if default is None else str(default)
        return valid if rng.random() < 0.7 else rng.choice(PIECES)

    keys = rng.sample(list(flatten(defaults)), 3)
    settings = [f"{section}: {{{leaf}: {value(key)}}}" for key in keys for section, _, leaf in [key.rpartition(".")]]
    text = yaml.safe_dump(defaults.model_dump()) if rng.random() < 0.5 else "\n".join(settings)
    for _ in range(rng.choice([0, 0, 1, 2])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(PIECES) + text[at + rng.randrange(4) :]
    arguments = [*given, *(word for key in keys[: rng.randrange(3)] for word in (f"--{key}", value(key)))]
    for _ in range(rng.choice([0, 0, 1, 2])):
        at, word = rng.randrange(len(arguments)), rng.choice(PIECES)
        arguments[at : at + rng.randrange(2)] = [arguments[at] + word if rng.random() < 0.5 else word]
    return command, arguments, text
