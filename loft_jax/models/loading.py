"""A user's own network: found by module and name, called, and known as Linen or NNX."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax import nnx

from loft_jax.errors import UserError, did_you_mean, format_literal, format_value
from loft_jax.models.linen import LinenSource
from loft_jax.models.nnx import NnxSource
from loft_jax.models.source import Source

_GIVEN = "given"
_networks: dict[str, Any] = {}


def load_source(name: str, options: Mapping[str, Any], num_classes: int) -> Source:
    """Load a network by `model.name`, "package.module:callable" or "path/to/file.py:callable".

    The callable gets `num_classes` and the options, and for NNX also `rngs`; it returns a Flax module, or is one.

    Raises:
      UserError: there is no such callable, it does not take these arguments, or what it returns is no Flax module.
    """
    where, _, attribute = name.rpartition(":")
    if where == _GIVEN:
        return _find_given(name, attribute, options, num_classes)
    module = _import(name, where)
    if not callable(found := getattr(module, attribute, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(attribute, known, f"it has {', '.join(known) or 'none'}")
        raise UserError(f"model.name={format_value(name)}: {where} has no callable {attribute}{near}")
    return _make_source(name, attribute, found, options, num_classes)


def module_source(module: nn.Module | nnx.Module) -> Source:
    """Return a module that exists as a source; an NNX module keeps its parameters as the initialisation."""
    if isinstance(module, nn.Module):
        return LinenSource(module)
    graph, state = nnx.split(module)
    return NnxSource(lambda rngs: nnx.merge(graph, state), type(module).__name__)


def give_network(model: Any) -> str:
    """Make a network from Python known to this process; return its `model.name`.

    Args:
      model: a Flax Linen or NNX module, or what `load_source` takes: a class or function that is called with
        `num_classes`, and for NNX `rngs`.
    """
    if not isinstance(model, nn.Module | nnx.Module):
        module, attribute = getattr(model, "__module__", ""), getattr(model, "__qualname__", "")
        if getattr(sys.modules.get(module), attribute, None) is model:
            return f"{module}:{attribute}"
    name = getattr(model, "__name__", type(model).__name__)
    name = name if name.isidentifier() else "network"
    _networks[name] = model
    return f"{_GIVEN}:{name}"


def _find_given(name: str, attribute: str, options: Mapping[str, Any], num_classes: int) -> Source:
    if attribute not in _networks:
        raise UserError(
            f"model.name={format_value(name)}: is a network that was given from Python, to another process; give it "
            "again (model=...), or put it into a file and train it by that name"
        )
    model = _networks[attribute]
    if isinstance(model, nn.Module | nnx.Module):
        return module_source(model)
    return _make_source(name, attribute, model, options, num_classes)


def _make_source(
    name: str, attribute: str, found: Callable[..., Any], options: Mapping[str, Any], num_classes: int
) -> Source:
    arguments = {"num_classes": num_classes, **options}
    _check_arguments(name, found, arguments)
    if "rngs" in _parameters(found):
        factory = partial(_call, name, found, arguments)
        _check_kind(name, nnx.eval_shape(lambda: factory(nnx.Rngs(0))), nnx.Module, "rngs")
        return NnxSource(_Factory(name, tuple(sorted(arguments.items(), key=lambda i: i[0])), factory), attribute)
    made = _call(name, found, arguments)
    if isinstance(made, nnx.Module):
        raise UserError(
            f"model.name={format_value(name)}: returns an NNX module, so it must take rngs, the random numbers that "
            f"initialise it: def {attribute}(num_classes, rngs)"
        )
    _check_kind(name, made, nn.Module, "num_classes")
    return LinenSource(made)


class _Factory:
    """A callable of rngs that is equal to another of the same network and options."""

    def __init__(self, name: str, arguments: Any, make: Callable[..., Any]):
        self._identity, self._make = (name, format_literal(arguments)), make

    def __call__(self, rngs: nnx.Rngs) -> nnx.Module:
        return self._make(rngs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Factory) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)


def _import(name: str, where: str) -> Any:
    if not where.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise UserError(
                f"model.name={format_value(name)}: {error}; give a module that can be imported from here, or the path "
                "of a file that ends in .py"
            ) from None
        except Exception as error:  # The user's code may raise anything.
            raise UserError(f"model.name={format_value(name)}: importing {where} failed: {_one_line(error)}") from error
    path = Path(where).expanduser()
    if not path.is_file():
        near = did_you_mean(
            str(path), map(str, path.parent.glob("*.py")), "paths are relative to the current directory"
        )
        raise UserError(f"model.name={format_value(name)}: no such file{near}")
    try:
        return _run_file(path.resolve(), path.stat().st_mtime_ns)
    except Exception as error:  # The user's code may raise anything.
        raise UserError(f"model.name={format_value(name)}: running {path} failed: {_one_line(error)}") from error


@lru_cache
def _run_file(path: Path, _: int) -> Any:
    """Run a file as a module; once, because each run makes other classes. The file's time tells its versions apart."""
    spec = importlib.util.spec_from_file_location(f"_network_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and NNX look their module up by its name.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def _check_arguments(name: str, found: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    parameters = _parameters(found)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = [p for p in parameters if p not in ("rngs", "parent", "name")]
    for argument in arguments:
        if argument not in parameters:
            key = "num_classes, the number of logits" if argument == "num_classes" else f"model.options.{argument}"
            near = did_you_mean(argument, known, f"it takes {', '.join(known) or 'nothing'}")
            raise UserError(f"model.name={format_value(name)}: does not take {key}{near}")
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and key not in arguments
        and key != "rngs"
    ]
    if missing:
        raise UserError(
            f"model.name={format_value(name)}: needs {', '.join(missing)}; give --model.options "
            f"'{{\"{missing[0]}\": ...}}'"
        )


def _parameters(found: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # The signature of an NNX class is that of its metaclass.
    is_nnx = isinstance(found, type) and issubclass(found, nnx.Module)
    parameters = dict(inspect.signature(found.__init__ if is_nnx else found).parameters)
    if is_nnx:
        parameters.pop(next(iter(parameters)))
    return parameters


def _call(name: str, found: Callable[..., Any], arguments: Mapping[str, Any], rngs: nnx.Rngs | None = None) -> Any:
    try:
        return found(**arguments, **({} if rngs is None else {"rngs": rngs}))
    except Exception as error:  # The user's code may raise anything.
        given = ", ".join(f"{key}={format_literal(value)}" for key, value in arguments.items())
        raise UserError(f"model.name={format_value(name)}: called with {given} it fails: {_one_line(error)}") from error


def _check_kind(name: str, made: Any, kind: type, argument: str) -> None:
    if not isinstance(made, kind):
        library = "nnx.Module" if kind is nnx.Module else "flax.linen.Module or flax.nnx.Module"
        raise UserError(
            f"model.name={format_value(name)}: returns {type(made).__name__}; a callable that takes {argument} must "
            f"return a {library}"
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
