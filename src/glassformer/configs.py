"""Recipes: frozen settings, read from TOML, with every problem reported at once.

A recipe is a TOML file. `extends = "other.toml"` (one level) starts from another recipe and changes what is
written. Any value can be overridden by its dotted name (`model.width=64`). Unknown keys, wrong types and
impossible combinations are collected and raised together as one `ConfigError`, with the nearest legal key.

pydantic compares settings only once each is right by itself. So that a typo does not hide an impossible
combination, what is wrong is mended (a typo with one likely meaning) or left out, and the rest is checked
again, until nothing new is found. A combination that names a setting left out is not judged.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from glassformer.errors import ConfigError, UsageError, nearest


def _listed(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""Several texts; one alone stands for a list of one."""


class Config(BaseModel):
    """Settings that never change once made; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Clash(ValueError):
    """Settings that are right one by one and wrong together; a validator raises it with all it found.

    Each problem names the settings it compares, so that it is set aside when one of them is wrong by itself.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(problems))


C = TypeVar("C", bound=Config)
Key = str | int


def build(schema: type[C], values: Mapping[str, Any], *, origin: str) -> C:
    """`values` as a `schema`, or a ConfigError that lists everything wrong with them."""
    try:
        return schema.model_validate(values)
    except ValidationError:
        problems = _problems(schema, values)
        raise ConfigError(
            f"{origin} has {len(problems)} problem{'s' * (len(problems) > 1)}:", problems
        ) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts, with one level of `extends` resolved relative to the file."""
    values = _parse(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UsageError(f"{path} has extends = {parent!r}.", expected="It is the path of one other recipe.")
    base = _parse(path.parent / parent)
    if "extends" in base:
        raise UsageError(
            f"{path} extends {parent}, which itself extends {base['extends']}.",
            expected="One level of extends is allowed.",
            do=f"Extend {base['extends']} directly, or write the values out.",
        )
    return merge(base, values)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it; tables are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def override(values: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `{"model.width": 64}` applied. Strings are read as TOML values where they are one."""
    result = dict(values)
    for name, value in dotted.items():
        change: Any = _literal(value)
        for part in reversed(name.split(".")):
            change = {part: change}
        result = merge(result, change)
    return result


def _parse(path: Path) -> dict[str, Any]:
    try:
        # utf-8-sig and universal newlines: recipes written by Windows editors work as they are.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"There is no recipe {path}.", do="Check the path.") from None
    except OSError as error:
        raise UsageError(
            f"The recipe {path} cannot be read: {error.strerror}.", do="Check the path."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", do="Mend the line it names.") from None


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _problems(schema: type[BaseModel], values: Mapping[str, Any]) -> list[str]:
    """Every problem, each once, in the order found."""
    found: list[str] = []
    left_out: set[str] = set()
    while True:
        try:
            schema.model_validate(values)
        except ValidationError as error:
            errors = error.errors()
        else:
            return found
        for message in _explain(schema, values, errors):
            if message not in found and not left_out.intersection(re.findall(r"\w+", message)):
                found.append(message)
        before = values
        for problem in errors:
            place = [key for key in _place(values, problem) if isinstance(key, str)]
            if place:
                typo = problem["type"] == "extra_forbidden"
                meant = _meant(_table(schema, place[:-1]), place[-1]) if typo else None
                left_out |= set() if typo else {place[-1], *_keys(problem["input"])}
                values = _replace(values, place, meant)
        if values == before:
            return found


def _explain(schema: type[BaseModel], values: Mapping[str, Any], errors: Sequence[Any]) -> Iterator[str]:
    """One line for each place with a problem. Where several types are allowed, pydantic tells the problem of
    each: they are joined, and those that say less than another, further in, are dropped."""
    lines: dict[tuple[Key, ...], list[str]] = {}
    given = {}
    for problem in errors:
        place = _place(values, problem)
        for message in _messages(schema, place, problem):
            lines.setdefault(place, []).append(message)
        if problem["type"] not in ("extra_forbidden", "value_error", "missing"):
            given[place] = f" (given: {problem['input']!r})"
    for place, messages in lines.items():
        if any(other[: len(place)] == place for other in lines if other != place and place):
            continue
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")
        clash = place not in given
        for message in messages if clash else [" or ".join(dict.fromkeys(messages))]:
            yield f"{name or 'recipe'}: {message}{given.get(place, '')}"


def _messages(schema: type[BaseModel], place: tuple[Key, ...], problem: Any) -> list[str]:
    if problem["type"] == "extra_forbidden":
        owner = _table(schema, [key for key in place[:-1] if isinstance(key, str)])
        return [f"there is no such key; {nearest(str(place[-1]), owner.model_fields) if owner else ''}"]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, Clash):
        return cause.problems
    message = re.sub(
        r"valid dictionary or instance of \w+", "table", problem["msg"].removeprefix("Value error, ")
    )
    return [message[0].lower() + message[1:]]


def _place(values: Any, problem: Any) -> tuple[Key, ...]:
    """Where the problem is in what the user wrote; pydantic's marks for a union's branches are no keys."""
    place: list[Key] = []
    for key in problem["loc"]:
        try:
            values = values[key]
        except (KeyError, IndexError, TypeError):
            continue
        place.append(key)
    return (*place, problem["loc"][-1]) if problem["type"] == "missing" else tuple(place)


def _keys(value: Any) -> set[str]:
    return {str(key) for key in value} if isinstance(value, Mapping) else set()


def _meant(owner: type[BaseModel] | None, typo: str) -> str | None:
    """The one key that `typo` is close enough to for its value to be judged under that name."""
    close = difflib.get_close_matches(typo, owner.model_fields if owner else (), n=1, cutoff=0.75)
    return close[0] if close else None


def _replace(values: Mapping[str, Any], place: Sequence[str], name: str | None) -> dict[str, Any]:
    """`values` with the setting at `place` renamed to `name`, unless that is set, or left out."""
    changed = dict(values)
    if len(place) > 1 and isinstance(values.get(place[0]), Mapping):
        changed[place[0]] = _replace(values[place[0]], place[1:], name)
        return changed
    value = changed.pop(place[0], None)
    if name is not None:
        changed.setdefault(name, value)
    return changed


def _table(schema: type[BaseModel], place: Sequence[str]) -> type[BaseModel] | None:
    """The model that the dotted place names."""
    for key in place:
        field = schema.model_fields.get(key)
        tables = list(_tables(field.annotation)) if field else []
        if not tables:
            return None
        schema = tables[0]
    return schema


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model inside an annotation such as `tuple[str | SourceConfig, ...]`."""
    for part in typing.get_args(annotation):
        yield from _tables(part)
    if isinstance(annotation, type) and not typing.get_args(annotation) and issubclass(annotation, BaseModel):
        yield annotation
