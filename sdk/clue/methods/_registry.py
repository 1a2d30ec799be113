"""The registry of methods and the checks that every hyper-parameter set shares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from clue.errors import HyperparameterError, UnknownMethodError

if TYPE_CHECKING:
    from clue.methods._job import ForgetJob


@dataclass(frozen=True)
class Hyperparameters:
    """Base of every method's settings: a frozen dataclass of numbers, booleans and names."""

    def require(self, name: str, ok: bool, rule: str) -> None:
        """Raise HyperparameterError naming the field unless ``ok``."""
        if not ok:
            raise HyperparameterError(f"{name} must be {rule}, got {getattr(self, name)!r}")


H = TypeVar("H", bound=Hyperparameters)
Run = Callable[["ForgetJob", H], None]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: as :func:`clue.forget` takes it.
        hyperparameters: its settings class.
        run: changes the student of a job in place.
        oracle: it needs retained data, so it is a yardstick and nothing that a device can do.
    """

    name: str
    hyperparameters: type[Hyperparameters]
    run: Callable[["ForgetJob", Any], None]
    oracle: bool = False


_METHODS: dict[str, Method] = {}


def register_method(name: str, hyperparameters: type[H], *, oracle: bool = False) -> Callable[[Run[H]], Run[H]]:
    """Decorator: make ``run`` available to :func:`clue.forget` as ``method=name``.

    ``oracle`` marks a method that needs retained data; :func:`available_methods` leaves it out.
    """

    def register(run: Run[H]) -> Run[H]:
        if name in _METHODS:
            raise ValueError(f"a method called {name!r} is already registered")
        _METHODS[name] = Method(name, hyperparameters, run, oracle)
        return run

    return register


def available_methods(*, oracles: bool = False) -> tuple[str, ...]:
    """Names of the registered methods that need forget samples only, sorted; with ``oracles`` of all."""
    return tuple(sorted(name for name, method in _METHODS.items() if oracles or not method.oracle))


def get_method(name: str) -> Method:
    """The method called ``name``; UnknownMethodError lists those that exist."""
    try:
        return _METHODS[name]
    except KeyError:
        known = ", ".join(available_methods(oracles=True))
        raise UnknownMethodError(f"there is no unlearning method {name!r}; choose one of: {known}") from None


def make_hyperparameters(method: Method, given: "Hyperparameters | Mapping[str, Any] | None") -> Hyperparameters:
    """Defaults of ``method`` overridden by ``given``; HyperparameterError on unknown or wrong values."""
    cls = method.hyperparameters
    if given is None:
        return cls()
    if isinstance(given, Hyperparameters):
        if not isinstance(given, cls):
            raise HyperparameterError(f"method {method.name!r} takes {cls.__name__}, got {type(given).__name__}")
        return given
    defaults = {f.name: f.default for f in fields(cls)}
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise HyperparameterError(
            f"method {method.name!r} has no hyper-parameter {unknown[0]!r}; it has: {', '.join(defaults)}"
        )
    return cls(**{name: _coerce(name, value, defaults[name]) for name, value in given.items()})


def _coerce(name: str, value: Any, default: Any) -> Any:
    """``value`` as the type of ``default``: JSON and TOML blur int and float, nothing else may differ."""
    if default is None or value is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise HyperparameterError(f"{name} must be of type {type(default).__name__}, got {value!r}")
    return value
