"""How a part is declared: a class whose fields are its arguments, with types that say which values make sense."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from diffac.parts.arguments import REQUIRED, Argument, choice, coefficient, count, flag, number, optional, part
from diffac.parts.schedules import TabularSchedule, check_schedule, tabulated
from diffac.protocols import (
    ActorObjective,
    CriticObjective,
    NoiseSchedule,
    ObsNormaliser,
    Optimiser,
    Sampler,
    Temperature,
)

Real = Annotated[float, number()]
Positive = Annotated[float, number("(0, inf)")]
NotNegative = Annotated[float, number("[0, inf)")]
Fraction = Annotated[float, number("(0, 1)")]
Rate = Annotated[float, number("(0, 1]")]
Unit = Annotated[float, number("[0, 1]")]
Coefficient = Annotated[Any, coefficient()]
"""A number, or a `LinearSchedule` of one over the learner's updates, in an update a number or array."""
PositiveCoefficient = Annotated[Any, coefficient("(0, inf)")]
RateCoefficient = Annotated[Any, coefficient("(0, 1]")]
Count = Annotated[int, count()]
"""1, 2, ..."""
Whole = Annotated[int, count(least=0)]
"""0, 1, ..."""
Schedule = Annotated[NoiseSchedule, Argument(check_schedule, wrong=(None, 5, "vp", TabularSchedule), convert=tabulated)]
"""Any `NoiseSchedule` may be given; the part has its values."""

POSITIONAL, KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY

Ensemble = Literal["min", "mean", "first"]
"""How the values of an ensemble [ensemble *batch] become one."""
TargetEnsemble = Literal["min", "mean", "first", "random_pair"]
"""Likewise for a target, which may also be the smaller of two members drawn anew for each batch. Not for an actor: with
other critics in each step it would climb another hill."""

STATIC = {"static": True}
"""Metadata of a field that is no array: in Equinox it is a part of the compiled program."""

EXAMPLES: dict[Any, str] = {
    Sampler: "DDPMSampler(schedule)",
    ActorObjective: "ValueThroughSampler(sampler)",
    CriticObjective: "MeanSquaredTD()",
    Temperature: "FixedTemperature()",
    Optimiser: "Adam()",
    ObsNormaliser: "Standardiser(obs_dim)",
}
"""Protocol -> what to write where something that can be none was given."""


def part_of(kind: Any) -> Argument:
    """An argument that is a part of a kind in `EXAMPLES`; where that is a protocol, it must satisfy it."""
    return part(EXAMPLES[kind], kind if getattr(kind, "_is_protocol", False) else None)


class Part:
    """What all declarations share.

    The arguments are checked when a part is made, and do not change afterwards: `dataclasses.replace` makes another
    one. A class that inherits a declaration and has no docstring of its own has that of the declaration.
    """

    arguments: ClassVar[Mapping[str, Argument]] = {}
    """Name -> which values it may have; classes that inherit a declaration may have further fields."""
    actor_arguments: ClassVar[tuple[str, ...] | None] = None
    """What the part calls the actor with; None: it does not, or leaves that to another part."""
    actor_predictions: ClassVar[tuple[str, ...] | None] = None
    """What the actor may predict, which its attribute `prediction` says, else "eps"; None: the part does not look."""
    actor_example: ClassVar[str] = "MLPDenoiser"
    """A network that is called so."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__doc__ is None:
            cls.__doc__ = next(base.__doc__ for base in cls.__mro__[1:] if issubclass(base, Part))

    def check(self, **others: Any) -> None:
        """Refuses arguments that make no sense, and converts those that come in several forms; called when it is made.

        Args:
            **others: values of arguments that the part does not keep.

        Raises:
            UsageError: says which argument, what is allowed and what was given.
        """
        for name, argument in self.arguments.items():
            if name in others:
                argument.check(name, others[name])
                continue
            value = getattr(self, name)
            argument.check(name, value)
            if argument.convert is not None:
                object.__setattr__(self, name, argument.convert(value))

    def parts(self) -> Iterator[Any]:
        """The part and all that it is made of, in any depth."""
        yield self
        for name in self.arguments:
            yield from _parts_in(getattr(self, name, None))

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.arguments and name in vars(self):
            raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} cannot be set; make another part")
        super().__setattr__(name, value)


def _parts_in(value: Any) -> Iterator[Any]:
    if isinstance(value, Part):
        yield from value.parts()
    elif isinstance(value, tuple):
        for entry in value:
            yield from _parts_in(entry)


Declaration = TypeVar("Declaration", bound=type[Part])


@overload
def declared(cls: Declaration) -> Declaration: ...
@overload
def declared(*, kw_only: bool = ..., check: bool = ...) -> Callable[[Declaration], Declaration]: ...
@dataclass_transform(eq_default=False)
def declared(cls: Any = None, *, kw_only: bool = False, check: bool = True) -> Any:
    """Makes a class the declaration of a part.

    kw_only: its arguments must be named in a call; check: `check` is called when one is made; a network,
    which is checked otherwise, is shown as its framework shows networks.

    Each field needs a type that says which values make sense: one of the numbers above, `bool`, a `Literal` of texts,
    a key of `EXAMPLES`, or one of these or None.

    Raises:
        TypeError: a field has another type.
    """
    if cls is None:
        return functools.partial(declared, kw_only=kw_only, check=check)
    # Not of Part, because Equinox warns where __init__ is written by hand.
    if check:
        cls.__post_init__ = _check  # pyright: ignore[reportAttributeAccessIssue]
    dataclasses.dataclass(eq=False, repr=check, kw_only=kw_only)(cls)
    hints = get_type_hints(cls, include_extras=True)
    fields: Mapping[str, Any] = cls.__dataclass_fields__  # pyright: ignore[reportAttributeAccessIssue]
    cls.arguments = {
        name: dataclasses.replace(
            _argument(cls, name, hints[name]),
            default=REQUIRED if field.default is dataclasses.MISSING else field.default,
            kind=KEYWORD if field.kw_only else POSITIONAL,
        )
        for name, field in fields.items()
        if field.init and get_origin(hints[name]) is not ClassVar
    }
    return cls


def _check(part: Part) -> None:
    part.check()


def _argument(cls: type, name: str, hint: Any) -> Argument:
    if isinstance(hint, dataclasses.InitVar):
        hint = hint.type
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return next(extra for extra in inner[1:] if isinstance(extra, Argument))
    if origin is Literal:
        return choice(*inner)
    if origin in (Union, UnionType) and type(None) in inner:
        (other,) = (one for one in inner if one is not type(None))
        return optional(_argument(cls, name, other))
    if hint is bool:
        return flag()
    if hint in EXAMPLES:
        return part_of(hint)
    raise TypeError(f"{cls.__name__}.{name}: nothing says which values of {hint!r} make sense")
