"""Budget and ledger: every model call is reserved before it is dispatched and settled with what it cost.

Five axes: model calls, tokens (uncached, cached and output; reasoning is part of output and recorded apart),
GPU-seconds, wall seconds and US dollars. Any set of axes can be capped. The rules:

- Nothing is dispatched unless spent + reserved + its own bound fits under every cap.
- The wall axis is a clock, not a sum: attempts overlap. It is exhausted when the run's minutes, over all its
  sessions, are.
- A key has at most one open reservation. Settling, refunding or losing a closed key changes nothing.
- The loop holds the bound of a request before it starts an attempt, under the request's id. The gateway's
  reservation for that request, `ID@...`, takes the place of this hold; it is never counted twice.
- An actual above its reservation is charged in full and flagged; no further reservation is granted.

The ledger does no I/O. It hands each change to `record` first and applies it after, so a change that could
not be written did not happen, and replaying the recorded events through `apply` restores the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from tools.metering import BudgetExhausted, Charge, Usage
from tools.models.base import Prices
from verifier.errors import UsageError
from verifier.verdict import Record

Event = dict[str, Any]
Axis = Literal["calls", "tokens", "gpu_seconds", "wall_seconds", "dollars"]

AXES: Final[tuple[Axis, ...]] = ("calls", "tokens", "gpu_seconds", "wall_seconds", "dollars")
_KEYS: Final[dict[str, tuple[Axis, float]]] = {
    "calls": ("calls", 1),
    "tokens": ("tokens", 1),
    "gpu_seconds": ("gpu_seconds", 1),
    "minutes": ("wall_seconds", 60),
    "dollars": ("dollars", 1),
}
_SUFFIXES: Final = {"k": 1e3, "M": 1e6}
_EXAMPLE: Final = 'write for example --budget "calls=24,minutes=15,tokens=200k,dollars=2"'


class BudgetError(UsageError):
    """A budget text that cannot be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, next_step=_EXAMPLE)


class Budget(Record):
    """Caps. None means that the axis is not capped; at least one is."""

    calls: int | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    """Prompt and output together."""
    gpu_seconds: float | None = Field(default=None, gt=0)
    wall_seconds: float | None = Field(default=None, gt=0)
    """Counted while a session runs, summed over the sessions of a run."""
    dollars: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _capped(self) -> Budget:
        if not self.caps:
            raise ValueError("a budget caps at least one axis")
        return self

    @property
    def caps(self) -> dict[Axis, float]:
        """Capped axis to its cap, in the order of `AXES`."""
        values: dict[Axis, float | None] = {axis: getattr(self, axis) for axis in AXES}
        return {axis: cap for axis, cap in values.items() if cap is not None}

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Reads `calls=24,minutes=15,tokens=200k,gpu_seconds=60,dollars=2`, any part of it. Raises
        BudgetError.
        """
        caps: dict[str, float] = {}
        for item in (part.strip() for part in text.split(",")):
            axis, value = _parse_item(item, text)
            if axis in caps:
                raise BudgetError(f"budget {text!r} names {item.split('=')[0].strip()} twice")
            caps[axis] = value
        return cls.model_validate({a: int(v) if a in ("calls", "tokens") else v for a, v in caps.items()})

    def __str__(self) -> str:
        scale = {axis: (key, unit) for key, (axis, unit) in _KEYS.items()}
        return ",".join(f"{scale[a][0]}={cap / scale[a][1]:.12g}" for a, cap in self.caps.items())


def refuse_endless(budget: Budget, prices: Sequence[Prices], *, measured: bool = False) -> None:
    """Raises BudgetError when no capped axis is one that the run can spend, so that it would never end. `measured`:
    candidates are judged on GPUs.
    """
    priced = any(p.uncached or p.cached or p.output for p in prices)
    unspendable = (set() if measured else {"gpu_seconds"}) | (set() if priced else {"dollars"})
    if set(budget.caps) <= unspendable:
        raise BudgetError(
            f"this run spends no {' and no '.join(budget.caps)}: it would never end; cap calls or minutes too"
        )


def _parse_item(item: str, text: str) -> tuple[Axis, float]:
    name, equals, number = (part.strip() for part in item.partition("="))
    if not equals:
        raise BudgetError(f"budget {text!r}: expected NAME=NUMBER, found {item!r}")
    if name not in _KEYS:
        raise BudgetError(f"budget {text!r}: unknown axis {name!r}; known are {', '.join(_KEYS)}")
    axis, unit = _KEYS[name]
    try:
        suffix = _SUFFIXES.get(number[-1:], 1.0)
        value = float(number[:-1] if suffix != 1.0 else number) * suffix * unit
    except ValueError:
        raise BudgetError(f"budget {text!r}: {number!r} is no number") from None
    if not math.isfinite(value) or value <= 0:
        raise BudgetError(f"budget {text!r}: {name} must be a positive number")
    if axis in ("calls", "tokens") and value != int(value):
        raise BudgetError(f"budget {text!r}: {name} must be a whole number")
    return axis, value


def amounts(charge: Charge) -> dict[Axis, float]:
    """The charge on the axes that add up; the wall axis is the ledger's clock and is left out."""
    return {
        "calls": charge.calls,
        "tokens": charge.usage.tokens,
        "gpu_seconds": charge.gpu_seconds,
        "dollars": charge.dollars,
    }


def add(a: Charge, b: Charge) -> Charge:
    """Sum on every axis. Unknown reasoning counts as nothing beside a known one."""
    known = [r for r in (a.usage.reasoning, b.usage.reasoning) if r is not None]
    usage = Usage(
        uncached=a.usage.uncached + b.usage.uncached,
        cached=a.usage.cached + b.usage.cached,
        output=a.usage.output + b.usage.output,
        reasoning=sum(known) if known else None,
        estimated=a.usage.estimated or b.usage.estimated,
    )
    return Charge(
        calls=a.calls + b.calls,
        usage=usage,
        gpu_seconds=a.gpu_seconds + b.gpu_seconds,
        wall_seconds=a.wall_seconds + b.wall_seconds,
        dollars=a.dollars + b.dollars,
    )


@dataclass(frozen=True, slots=True)
class Entry:
    """A reservation that was closed. `charge` is what it came to: nothing if refunded, the bound if lost."""

    key: str
    how: Literal["settle", "refund", "lost"]
    bound: Charge
    charge: Charge
    reason: str = ""


def _ignore(event: Event) -> None:
    return None


class Ledger:
    """Implements `tools.metering.Meter`. `clock` gives the run's wall seconds over all sessions."""

    def __init__(
        self,
        budget: Budget,
        *,
        record: Callable[[Event], None] = _ignore,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.budget = budget
        self.spent = Charge()
        self.open: dict[str, Charge] = {}
        self.closed: list[Entry] = []
        self.excess: list[str] = []
        """One sentence for each actual above its reservation."""
        self._known: set[str] = set()
        self._record = record
        self._clock = clock

    @property
    def reserved(self) -> Charge:
        return self._held_without("")

    def totals(self) -> dict[Axis, float]:
        """Spent and reserved together, by axis."""
        return self._totals_without("")

    def remaining(self) -> dict[str, float]:
        """Capped axis to the share that is neither spent nor reserved, from 0 to 1."""
        used = self.totals()
        return {axis: min(1.0, max(0.0, 1 - used[axis] / cap)) for axis, cap in self.budget.caps.items()}

    def short_axis(self, bound: Charge, *, instead_of: str = "") -> Axis | None:
        """The first capped axis on which `bound` does not fit, None when it fits everywhere.

        `instead_of` names an open hold that the bound would replace.
        """
        used, wanted = self._totals_without(instead_of), amounts(bound)
        for axis, cap in self.budget.caps.items():
            if axis == "wall_seconds" and used[axis] >= cap:
                return axis
            if axis != "wall_seconds" and used[axis] + wanted[axis] > cap:
                return axis
        return None

    def reserve(self, key: str, bound: Charge) -> None:
        """Holds `bound` under `key`. A key that is open already keeps its hold.

        Raises BudgetExhausted when it does not fit, or after an excess.
        """
        if key in self.open:
            return
        hold = self._hold_of(key)
        if self.excess:
            raise BudgetExhausted("tokens", f"no call after an excess: {self.excess[0]}")
        if axis := self.short_axis(bound, instead_of=hold):
            raise BudgetExhausted(axis, f"the reservation of {key} does not fit the budget's {axis}")
        self._do({"t": "reserve", "key": key, "bound": _dump(bound)} | ({"hold": hold} if hold else {}))

    def adopt(self, key: str, bound: Charge) -> None:
        """Holds `bound` of a dispatch that is known to have happened, whether it fits or not."""
        if key not in self._known:
            self._do({"t": "reserve", "key": key, "bound": _dump(bound)})

    def settle(self, key: str, actual: Charge) -> None:
        """Replaces the hold of `key` by `actual`. Of a key that is closed: nothing happens."""
        if self._is_open(key):
            self._do({"t": "settle", "key": key, "actual": _dump(actual)})

    def settle_in(self, event: Event, actuals: Mapping[str, Charge]) -> None:
        """Records `event`, and in the same line what those of `actuals` come to that are open: one is not without the
        other, whenever the run is killed."""
        due = {key: _dump(actual) for key, actual in actuals.items() if key in self.open}
        self._do(event | ({"settles": due} if due else {}))

    def refund(self, key: str, reason: str) -> None:
        """Releases the hold of `key`: the infrastructure failed, nothing is charged."""
        if self._is_open(key):
            self._do({"t": "refund", "key": key, "reason": reason})

    def lose(self, key: str, reason: str) -> None:
        """Charges `key` at its reservation: it was dispatched and its answer never reached the disk."""
        if self._is_open(key):
            self._do({"t": "lost", "key": key, "reason": reason})

    def apply(self, event: Mapping[str, Any]) -> None:
        """Takes one recorded event; of other kinds only what they settle is the ledger's."""
        for settled, actual in event.get("settles", {}).items():
            self._close(settled, "settle", Charge.model_validate(actual))
        kind, key = event["t"], event.get("key", "")
        if kind == "reserve":
            self.open.pop(event.get("hold", ""), None)
            self.open[key] = Charge.model_validate(event["bound"])
            self._known.add(key)
        elif kind == "settle":
            self._close(key, "settle", Charge.model_validate(event["actual"]))
        elif kind == "refund":
            self._close(key, "refund", Charge(), event["reason"])
        elif kind == "lost":
            self._close(key, "lost", self.open[key], event["reason"])

    def _hold_of(self, key: str) -> str:
        hold = key.partition("@")[0]
        return hold if hold != key and hold in self.open else ""

    def _held_without(self, key: str) -> Charge:
        total = Charge()
        for bound in (bound for name, bound in self.open.items() if name != key):
            total = add(total, bound)
        return total

    def _totals_without(self, key: str) -> dict[Axis, float]:
        used = amounts(add(self.spent, self._held_without(key)))
        return used | {"wall_seconds": self._clock()}

    def _do(self, event: Event) -> None:
        self._record(event)
        self.apply(event)

    def _is_open(self, key: str) -> bool:
        if key not in self._known:
            raise LookupError(f"no reservation was ever made for {key!r}")
        return key in self.open

    def _close(self, key: str, how: Literal["settle", "refund", "lost"], charge: Charge, reason: str = "") -> None:
        bound = self.open.pop(key)
        self.spent = add(self.spent, charge)
        self.closed.append(Entry(key, how, bound, charge, reason))
        held = amounts(bound)
        for axis, amount in amounts(charge).items():
            if amount > held[axis] * (1 + 1e-9):
                self.excess.append(f"{key} reserved {held[axis]:g} {axis} and was charged {amount:g}")


def _dump(charge: Charge) -> dict[str, Any]:
    return charge.model_dump(mode="json", exclude_defaults=True)
