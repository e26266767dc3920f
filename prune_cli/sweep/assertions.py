"""`--assert 'mean(acc)@0.25 >= base - 0.5'`: a small language that decides an exit code.

    assertion  = sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
    sum        = product {("+" | "-") product}
    product    = factor {("*" | "/") factor}
    factor     = "-" factor | number ["%"] | "(" sum ")" | base | statistic
    base       = "base" ["(" metric ")"]
    statistic  = ("mean" | "median" | "sd" | "min" | "max" | "n" | "low" | "high")
                 "(" metric ")" ["@" where {"," where}]
    metric     = any characters but parentheses
    where      = amount | target | allocation | criterion | module

`metric` stands for the metric that counts, `base` for the unpruned checkpoint's value of the one
metric that the assertion names. An assertion is parsed before anything runs and holds or does not
when all has run; what it asks for and nobody measured does not hold.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, TypeVar

from prune_cli.amounts import Amount, parse_amount
from prune_cli.errors import UsageError
from prune_cli.sweep.grid import Point
from prune_cli.sweep.metric import METRIC
from prune_cli.sweep.statistics import Spread, describe

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

_Found = TypeVar("_Found")

_STATISTICS = ("mean", "median", "sd", "min", "max", "n", "low", "high")

_WORD = r"[^\s()<>!=+*/,]+"

_TOKEN = re.compile(
    rf"\s*(?:(?P<where>@{_WORD}(?:={_WORD})?(?:,\s*{_WORD})*)"
    r"|(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?%?|\.\d+(?:[eE][+-]?\d+)?%?)"
    r"|(?P<call>[a-z]+\s*\([^()]*\))"
    r"|(?P<word>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|[-+*/()<>]))"
)


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Base:
    """The unpruned checkpoint's value of a metric; None: of the one that the assertion names."""

    metric: str | None


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of a metric over the trials of one point, which `where` picks."""

    name: str
    metric: str
    where: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """Two values and "+", "-", "*" or "/" between them."""

    sign: str
    left: "Value"
    right: "Value"


Value = Number | Base | Statistic | Operation


@dataclass(frozen=True, slots=True)
class Assertion:
    """A comparison of two values, and how the user spelt it."""

    text: str
    left: Value
    sign: str
    right: Value


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an assertion holds; `reason` has the numbers, or says what is missing."""

    text: str
    holds: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Results:
    """What assertions are held against.

    Attributes:
        counts: the name of the metric that counts.
        base: the metrics of the unpruned checkpoint.
        values: of each point, each metric of its trials that have one.
    """

    counts: str
    base: Mapping[str, float]
    values: Mapping[Point, Mapping[str, Sequence[float]]]


class _CannotTellError(Exception):
    """A value that an assertion asks for is not there."""


def parse_assertion(text: str) -> Assertion:
    """Return the assertion that `text` spells.

    Raises:
        UsageError: it is not one; the message says where.
    """
    parser = _Parser(text, [*_tokens(text)])
    left = parser.sum()
    sign = parser.take(*_COMPARISONS)
    right = parser.sum()
    parser.end()
    return _with_base_named(Assertion(text, left, sign, right))


def check_assertion(assertion: Assertion, points: Sequence[Point]) -> None:
    """Raise UsageError where a statistic names no point of the grid, or more than one."""
    problems = []
    for statistic in _statistics_of(assertion.left, assertion.right):
        try:
            _pick(statistic, points)
        except _CannotTellError as error:
            problems.append(f"--assert {assertion.text!r}: {error}")
    if problems:
        raise UsageError("\n".join(problems))


def judge(assertion: Assertion, results: Results) -> Verdict:
    """Return whether `assertion` holds of `results`."""
    try:
        left, right = (_evaluate(side, results) for side in (assertion.left, assertion.right))
    except _CannotTellError as error:
        return Verdict(assertion.text, False, str(error))
    holds = _COMPARISONS[assertion.sign](left, right)
    return Verdict(assertion.text, holds, f"{left:.6g} {assertion.sign} {right:.6g}")


# --- values ----------------------------------------------------------------------------------


def _evaluate(value: Value, results: Results) -> float:
    match value:
        case Number(number):
            return number
        case Base(metric):
            return _look_up(results.base, metric or METRIC, results, "the unpruned checkpoint")
        case Statistic():
            return _statistic(value, results)
        case Operation(sign, left, right):
            return _operate(sign, _evaluate(left, results), _evaluate(right, results))


def _operate(sign: str, left: float, right: float) -> float:
    if sign == "/" and right == 0:
        raise _CannotTellError("it divides by 0")
    signs = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    return float(signs[sign](left, right))


def _statistic(statistic: Statistic, results: Results) -> float:
    point = _pick(statistic, [*results.values])
    where = "the unpruned checkpoint" if point.is_unpruned else f"@{point.how_much}"
    values = _look_up(results.values[point], statistic.metric, results, where)
    return _of(statistic.name, values)


def _of(name: str, values: Sequence[float]) -> float:
    spread = describe(values)
    if name == "median":
        import statistics

        return statistics.median(values)
    if name in ("low", "high") or name == "sd":
        return _of_spread(name, spread)
    return float(getattr(spread, name))


def _of_spread(name: str, spread: Spread) -> float:
    if spread.sd is None or spread.interval is None:
        raise _CannotTellError(f"1 trial has no {name}; add --seeds")
    return spread.sd if name == "sd" else float(getattr(spread.interval, name))


def _look_up(found: Mapping[str, _Found], metric: str, results: Results, where: str) -> _Found:
    name = results.counts if metric == METRIC and METRIC not in found else metric
    if name not in found:
        there = ", ".join(sorted(found)) or "none, since no trial of it succeeded"
        raise _CannotTellError(f"{where} has no metric {name}; it has {there}")
    return found[name]


# --- points ----------------------------------------------------------------------------------


def _statistics_of(*values: Value) -> Iterator[Statistic]:
    for value in values:
        match value:
            case Statistic():
                yield value
            case Operation(_, left, right):
                yield from _statistics_of(left, right)


def _pick(statistic: Statistic, points: Sequence[Point]) -> Point:
    """Return the one point that `statistic` names."""
    fits = [point for point in points if all(_fits(word, point) for word in statistic.where)]
    if not statistic.where:
        fits = [point for point in fits if not point.is_unpruned]
    if len(fits) == 1:
        return fits[0]
    spelt = "@" + ",".join(statistic.where) if statistic.where else "without @"
    known = ", ".join(dict.fromkeys(spell_point(point) for point in (fits or points)))
    what = f"names {len(fits)} points" if fits else "names no point of the sweep"
    raise _CannotTellError(f"{spelt} {what}; choose one of {known}")


def _fits(word: str, point: Point) -> bool:
    if word in (point.allocation, point.criterion, point.target, point.module, point.how_much):
        return True
    try:
        amount: Amount = parse_amount(word)
    except UsageError:
        return False
    same_kind = type(amount) is type(point.amount) or amount == 0
    return point.amount is not None and same_kind and amount == point.amount


def spell_point(point: Point) -> str:
    """Return how an assertion names `point`."""
    if point.is_unpruned:
        return "@0"
    module = "" if point.module is None else f",{point.module}"
    return f"@{point.how_much},{point.allocation},{point.criterion}{module}"


# --- grammar ---------------------------------------------------------------------------------


def _with_base_named(assertion: Assertion) -> Assertion:
    """`base` without a name is of the one metric that the assertion names."""
    sides = (assertion.left, assertion.right)
    metrics = {statistic.metric for statistic in _statistics_of(*sides)} or {METRIC}
    if len(metrics) > 1 and any(map(_has_bare_base, sides)):
        names = ", ".join(sorted(metrics))
        raise UsageError(
            f"--assert {assertion.text!r}: of which metric is base ({names})? Write base(acc)"
        )
    metric = min(metrics)
    left, right = (_name_base(side, metric) for side in sides)
    return replace(assertion, left=left, right=right)


def _has_bare_base(value: Value) -> bool:
    if isinstance(value, Operation):
        return _has_bare_base(value.left) or _has_bare_base(value.right)
    return value == Base(None)


def _name_base(value: Value, metric: str) -> Value:
    match value:
        case Base(None):
            return Base(metric)
        case Operation(sign, left, right):
            return Operation(sign, _name_base(left, metric), _name_base(right, metric))
    return value


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    column: int


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while text[position:].strip():
        found = _TOKEN.match(text, position)
        if not found or not found.lastgroup:
            raise UsageError(f"--assert {text!r}: cannot read {text[position:].strip()!r}")
        yield _Token(found.lastgroup, found[found.lastgroup], found.start(found.lastgroup))
        position = found.end()


class _Parser:
    """Recursive descent; a class because it holds how far it has read."""

    def __init__(self, text: str, tokens: Sequence[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._position = 0

    def sum(self) -> Value:
        """Return a sum of products."""
        return self._chain(self._product, "+", "-")

    def take(self, *texts: str) -> str:
        """Return one of `texts`, which must come next."""
        if not self._next_is(*texts):
            self._refuse(f"expected {' or '.join(texts)}")
        return self._advance().text

    def end(self) -> None:
        """Nothing more may come."""
        if self._position < len(self._tokens):
            self._refuse("expected the end")

    def _product(self) -> Value:
        return self._chain(self._factor, "*", "/")

    def _chain(self, part: Callable[[], Value], *signs: str) -> Value:
        value = part()
        while self._next_is(*signs):
            value = Operation(self._advance().text, value, part())
        return value

    def _factor(self) -> Value:
        if self._next_is("-"):
            self._advance()
            return Operation("-", Number(0.0), self._factor())
        if self._next_is("("):
            return self._in_parentheses()
        token = self._peek()
        match token.kind if token else None:
            case "number":
                return Number(_number(self._advance().text))
            case "word" | "call":
                return self._named(self._advance().text)
        return self._refuse("expected a number, base or a statistic")

    def _in_parentheses(self) -> Value:
        self.take("(")
        value = self.sum()
        self.take(")")
        return value

    def _named(self, text: str) -> Value:
        word, _, metric = (part.strip() for part in text.removesuffix(")").partition("("))
        if word == "base" and (metric or text == word):
            return Base(metric or None)
        if word in _STATISTICS and metric:
            return Statistic(word, metric, self._where())
        self._position -= 1
        return self._refuse(f"expected base or {', '.join(f'{name}(...)' for name in _STATISTICS)}")

    def _where(self) -> tuple[str, ...]:
        token = self._peek()
        if not token or token.kind != "where":
            return ()
        return tuple(word.strip() for word in self._advance().text[1:].split(","))

    def _peek(self) -> _Token | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _next_is(self, *texts: str) -> bool:
        token = self._peek()
        return token is not None and token.kind == "sign" and token.text in texts

    def _advance(self) -> _Token:
        token = self._tokens[self._position]
        self._position += 1
        return token

    def _refuse(self, why: str) -> NoReturn:
        token = self._peek()
        found = f"{token.text!r} in column {token.column + 1}" if token else "the end"
        raise UsageError(
            f"--assert {self._text!r}: {why}, found {found} (like 'mean(acc)@0.25 >= base - 0.5')"
        )


def _number(text: str) -> float:
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
