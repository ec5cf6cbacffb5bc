"""What the documentation shows runs: Python examples, command lines, settings, links, and the site itself."""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from html import unescape
from importlib import import_module
from itertools import dropwhile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from flax.traverse_util import unflatten_dict
from helpers import CONFIGS, PACKAGE, ROOT
from safetensors.numpy import load_file

import loft_jax
from loft_jax.__main__ import COMMANDS
from loft_jax.config import Config, Parser, apply_overrides, read_config
from loft_jax.config.loading import iterate_fields
from loft_jax.lottery import LotteryConfig
from loft_jax.storage import Store
from loft_jax.study.study import Study
from loft_jax.theory.config import TheoryConfig
from loft_jax.tickets import __main__ as tickets

PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
# The tests' run in place of the pages': narrower and shorter.
AS_HERE = {"num_classes=10)": "num_classes=10, width=4)", "r40-": "r6-"}

# What a shell finds on a user's machine. A page that shows another program needs a line here.
PROGRAMS = (
    *("python", "pip", "loft-jax", "ruff", "pyrefly", "lint-imports", "mkdocs", "pre-commit", "tensorboard"),
    *("sbatch", "launch/local.sh", "launch/tpu_pod.sh", "launch/pack.sh", "launch/packed.sh", "docker"),
)
END = "\x1e"
# Commands with settings of their own.
SETTINGS = {"theory": TheoryConfig, "lottery": LotteryConfig}
# What a user chooses.
STANDS_FOR = {"K": "0", "S": "4", "D": "1", "C": "digits", "T": "cpu:4"}


def blocks(page, *languages):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", TEXTS[page], flags=re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


def without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATED = hooks().pages()


# Python


@pytest.fixture(scope="module")
def runs_digits(finished, tmp_path_factory):
    """A directory with `runs/digits` as on the pages: searched, its tickets exported, and one of them "retrained"."""
    place = tmp_path_factory.mktemp("pages")
    run = place / "runs/digits"
    shutil.copytree(finished[0], run)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("loft_jax.devices.setup.configure_jax", lambda config: None)
        patch.setattr(sys, "argv", ["tickets", "runs/digits", "--ratios", "0.5", "0.8", "--export"])
        tickets.main()
    # As `retrain` leaves it, without the training.
    ticket, retrained = run / "tickets/r6-group-l2-0.5", run / "retrain/r6-group-l2-0.5/rewind/seed0"
    retrained.mkdir(parents=True)
    shutil.copy(ticket / "ticket.json", retrained)
    variables = unflatten_dict(load_file(ticket / "weights.safetensors"), sep="/")
    store = Store(retrained / "checkpoints")
    store.save(6, {"variables": variables, "round": np.int32(6)})
    store.wait()
    store.close()
    return place


@pytest.mark.full
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_examples_of_a_page_run_in_order(page, runs_digits, monkeypatch):
    monkeypatch.chdir(runs_digits)
    names = {}
    for code in blocks(page, "python"):
        for shown, here in AS_HERE.items():
            code = code.replace(shown, here)
        exec(compile(code, page, "exec"), names)
    if page == "README.md":
        assert names["logits"].shape == (360, 10)
        assert "Config()" not in "".join(blocks(page, "python")), "the data set of a run is that of its own config"
    if page == "docs/guides/tickets.md":
        logits = names["model"].apply(names["variables"], np.zeros((1, 8, 8, 1), np.float32))
        assert logits.shape == (1, 10)


def test_the_pages_have_the_examples_that_users_need():
    text = "".join(code for page in PAGES for code in blocks(page, "python"))
    for needed in ("state_dict", "load_checkpoint", "load_dataset", "load_file", "draw_partition", "UserError"):
        assert needed in text, needed


# Command lines


class _ParsedError(Exception):
    """Raised with the options in place of what a command does with them."""


def parse(command, arguments):
    """Check arguments against a command's own parser, and against the settings and the file that they name."""
    original = Parser.parse_args

    def stop(self, argv=None):
        raise _ParsedError(original(self, argv))

    module = f"loft_jax.{command}.__main__" if command else "loft_jax.__main__"
    arguments = [STANDS_FOR.get(argument, argument) for argument in arguments]
    with mock.patch.object(Parser, "parse_args", stop), mock.patch.object(sys, "argv", [command, *arguments]):
        main = import_module(module).main if command else import_module(module)._main
        try:
            main()
        except _ParsedError as parsed:
            (options,) = parsed.args
        except SystemExit as end:
            if end.code:
                raise
            return  # --version
    if command == "study":
        if (ROOT / "configs/studies" / f"{options.config}.yaml").exists():
            Study.read(options.config, {})
        return
    settings = SETTINGS.get(command, Config)
    known = dict(iterate_fields(settings))
    given = {key: value for key, value in vars(options).items() if key in known}
    apply_overrides(config_named(getattr(options, "config", None)), given, "documentation", settings)


def config_named(name):
    """The settings of a file that a page names: in the repository, packaged, or made by a run."""
    if name is None or name.startswith("runs/"):
        return {}
    return read_config(str(ROOT / name) if "/" in name else name)


def commands_of(script, place):
    """The programs that a script calls, with their arguments as bash expands them. Nothing is really run."""
    (place / ".venv/bin").mkdir(parents=True)
    (place / ".venv/bin/activate").touch()
    for run in re.findall(r"runs/\w+", script):
        (place / run).mkdir(parents=True, exist_ok=True)
    log = place / "log"
    log.touch()
    stand_ins = "\n".join(f'{name}() {{ printf "%s\\0" "{name}" "$@" "$END" >>"$LOG"; }}' for name in PROGRAMS)
    shell = shutil.which("bash")
    environment = {"PATH": "", "HOME": str(place), "LOG": str(log), "END": END}
    result = subprocess.run(
        [shell, "-c", f"set -eu\n{stand_ins}\n{script}"], cwd=place, env=environment, capture_output=True, text=True
    )
    assert not result.returncode, f"{result.stderr}\n{script}"
    calls = log.read_text(encoding="utf-8").split(f"{END}\0")[:-1]
    return [call.split("\0")[:-1] for call in calls]


def check(words):
    """Check one call against the parser of the command that it starts, if it is one of ours."""
    match words:
        case ["python", "-m", module, *arguments] if module.partition(".")[0] == "loft_jax":
            parse(module.removeprefix("loft_jax").removeprefix("."), arguments)
        case ["loft-jax", command, *arguments]:
            parse(command, arguments)
        case ["launch/local.sh", count, *arguments]:
            assert int(count)
            parse("train", arguments)
        case ["launch/tpu_pod.sh", *arguments]:
            parse("train", arguments)
        case ["sbatch", *_] if "launch/slurm.sbatch" in words:
            parse("train", words[words.index("launch/slurm.sbatch") + 1 :])
        case ["docker", "run", *_]:
            entry = ["python"] if "--entrypoint" in words else ["python", "-m", "loft_jax.train"]
            check([*entry, *words[words.index("loft_jax") + 1 :]])
        case ["python", "-m", "pytest", *arguments]:
            for argument in arguments:
                assert not argument.startswith("tests/") or (ROOT / argument).exists(), argument
        case ["pip", "install", *arguments]:
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for extra in re.findall(r"\.\[(.*?)\]", " ".join(arguments)):
                assert set(extra.split(",")) <= known.keys(), extra


SHELL = [(page, number, code) for page in PAGES for number, code in enumerate(blocks(page, "sh", "bash"))]


@pytest.mark.parametrize(("page", "number", "code"), SHELL, ids=[f"{page}-{number}" for page, number, _ in SHELL])
def test_a_command_line_is_one_that_the_command_takes(page, number, code, tmp_path):
    calls = commands_of(code, tmp_path)
    assert calls, "a block of sh shows at least one command"
    for words in calls:
        check(words)


@pytest.mark.parametrize("file", [*sorted(CONFIGS.rglob("*.yaml")), *sorted((ROOT / "launch").iterdir())], ids=str)
def test_a_header_shows_a_command_line_that_the_command_takes(file):
    lines = re.findall(r"^#   (.*(?:-m loft_jax|launch/).*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines or file.name == "gke_jobset.yaml", file
    for line in lines:
        # WORKDIR=... before a program is its environment.
        check(list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(line))))


def spans(page):
    """Pieces of code in the running text and the tables of a page."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(TEXTS[page]))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_and_setting_in_the_text_exists(page):
    known = {key for settings in SETTINGS.values() for key, _ in iterate_fields(settings)}
    sections = "|".join(sorted({key.split(".")[0] for key in known if "." in key}))
    for span in spans(page):
        if re.match(r"--\w+\.\w+ \S", span):
            command = "cost" if "--workers " in span else "train"
            check_settings(span.split(".")[0].removeprefix("--"), shlex.split(span), command)
        # data.json is a file of a run, and lottery.yaml; loft.py one of the package.
        for key in re.findall(rf"(?:--|^)((?:{sections})\.(?!json$|yaml$|py$)\w+)", span):
            assert key in known, f"{page}: {span}"
        if named := re.fullmatch(rf"((?:{sections})\.\w+): (\w+)", span):
            check_settings(span.split(".")[0], [f"--{named[1]}", named[2]])
        if re.match(r"python -m loft_jax\.\w+ -", span):
            check(shlex.split(span.split(" > ")[0].replace("[RUN ...] ", "")))


def check_settings(section, words, otherwise="train"):
    """Check options of a section against the command that has it."""
    held = ["--data.validation", "0.1"] if section == "lottery" else []
    parse(section if section in SETTINGS else otherwise, [*words, *held])


# Links, and what must be on the pages


def anchors(text):
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", unescape(heading)).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", [*PAGES, *(f"docs/{path}" for path in GENERATED)])
def test_links_and_pictures_lead_somewhere(page):
    text = TEXTS.get(page) or GENERATED[page.removeprefix("docs/")]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = Path(os.path.normpath((ROOT / page).parent / path)) if path else ROOT / page
        name = there.relative_to(ROOT).as_posix()
        generated = GENERATED.get(name.removeprefix("docs/"))
        assert there.exists() or generated, f"{page}: {target}"
        if anchor:
            assert anchor in anchors(generated or (ROOT / name).read_text(encoding="utf-8")), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    listed = set(re.findall(r"[\w/-]+\.md", str(nav)))
    generated = {path for path in GENERATED if not path.startswith("reference/commands/") or path.endswith("index.md")}
    assert listed == generated | {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}


def test_readme_is_short_and_has_the_two_commands():
    lines = TEXTS["README.md"].splitlines()
    assert len(lines) <= 200
    assert "pip install . && python -m loft_jax.train --config configs/digits.yaml --workdir runs/digits" in lines
    assert next(line for line in lines if re.match("pip install .*pytest", line)).endswith("&& python -m pytest")


def test_readme_and_the_picture_of_the_house_name_every_folder():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    picture = (ROOT / "docs/figures/house.svg").read_text(encoding="utf-8")
    for name in folders:
        assert f"{name}/" in TEXTS["README.md"], name
        assert f"`{name}`" in TEXTS["docs/how/house.md"], name
        assert f">{name}<" in picture, f"{name}: python docs/figures/draw.py draws it again"


def test_the_reference_has_every_setting_option_and_name():
    for key, field in iterate_fields(Config):
        assert f"| `{key}` |" in GENERATED["reference/settings.md"], key
        assert field.description
    for command in COMMANDS:
        page = GENERATED[f"reference/commands/{command}.md"]
        for option in hooks().parser_of(command)._option_string_actions:
            assert option in page, option
    for name in loft_jax.__all__:
        assert f"loft_jax.{name}" in TEXTS["docs/reference/python.md"], name


def test_the_messages_of_troubleshooting_are_those_of_the_program():
    said = " ".join(text for path in PACKAGE.rglob("*.py") for text in texts_in(ast.parse(path.read_text())))
    table = TEXTS["docs/guides/troubleshooting.md"].split("## Limits")[0]
    messages = [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")][1:]
    assert messages
    for message in messages:
        for part in re.findall("`(.*?)`", message) or message.split("..."):
            assert part.strip() in said, part


def texts_in(tree):
    """Every text of a module; gaps of a formatted one are left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)


@pytest.mark.full
def test_the_site_builds(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not result.returncode, result.stdout + result.stderr
    page = (tmp_path / "site/reference/python/index.html").read_text(encoding="utf-8")
    assert "rank of each filter" in page
