"""Lending KV that is reserved and not reached yet: the accounting of the paper's KV pipelining.

A *host* with a window of L tokens, g of them generated, reaches the tokens behind g + t after t steps. A *guest* whose
own window is w may use a stretch of w tokens there, from ``start``, if it finishes before the host arrives:

    start - g >= w + buffer        (time: every step gives both one token)
    start + w <= end of the gap    (space: inside the host's window, clear of other guests)

A guest is a host to others in the same way, ``depth`` levels deep. With ``relend`` a stretch whose guest has finished
is free again. Among the stretches that fit, the one whose host arrives soonest is taken.

Source: EcoServe (arXiv 2411.06364), KV pipelining; what it leaves open (several guests, re-lending, late guests) is
decided here.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from ecoserve.serving.core.tasks import Task


@dataclass(slots=True, order=True)
class Loan:
    """A stretch ``[start, end)`` of a host's response window, lent to a guest.

    ``base_tokens``: tokens that the guest had of its own when it came; it is charged for those.
    """

    start: int
    end: int
    host: Task = field(compare=False)
    guest: Task = field(compare=False)
    base_tokens: int = field(compare=False)
    level: int = field(compare=False)
    #: False once the guest has finished and the stretch is not lent again
    live: bool = field(compare=False, default=True)
    #: the guest has not started yet
    fresh: bool = field(compare=False, default=True)


class Lending:
    """All loans of one engine.

    Args:
        buffer: tokens between a guest's end and its host's arrival, >= 0.
        depth: levels of guests, >= 1.
        relend: whether a stretch is lent again.
    """

    def __init__(self, buffer: int, depth: int, relend: bool) -> None:
        self.buffer = buffer
        self.depth = depth
        self.relend = relend
        #: guest -> its loan; host -> loans in its window, by start
        self.loan_of: dict[Task, Loan] = {}
        self.loans_in: dict[Task, list[Loan]] = {}

    def find(self, hosts: Iterable[Task], guest: Task, window: int, stay: int) -> Loan | None:
        """The stretch for a guest that needs ``window`` tokens for ``stay`` steps; None if there is none.

        ``hosts`` are decodes with a promise. Changes nothing.
        """
        best: Loan | None = None
        best_wait = 0
        for host in hosts:
            if host is guest or host.promised - host.generated < 2 * window:
                continue
            level = self.level(host) + 1
            if level > self.depth:
                continue
            for low, high in self._gaps(host):
                start = high - window
                wait = start - host.generated
                if start < low or wait < stay + self.buffer:
                    continue
                if best is None or wait < best_wait:
                    best = Loan(start, high, host, guest, guest.prompt_tokens + guest.generated, level)
                    best_wait = wait
                break  # later gaps of the same host make it wait longer
        return best

    def _gaps(self, host: Task) -> list[tuple[int, int]]:
        """Stretches of a host's window that are not lent, nearest first."""
        gaps, low = [], host.generated
        for loan in self.loans_in.get(host, ()):
            if loan.start > low:
                gaps.append((low, loan.start))
            low = max(low, loan.end)
        if host.promised > low:
            gaps.append((low, host.promised))
        return gaps

    def level(self, task: Task) -> int:
        """0 for a task with a window of its own, 1 for a guest, 2 for a guest's guest, ..."""
        loan = self.loan_of.get(task)
        return loan.level if loan is not None else 0

    def lend(self, loan: Loan) -> None:
        """Enter a loan that :meth:`find` found."""
        self.loan_of[loan.guest] = loan
        insort(self.loans_in.setdefault(loan.host, []), loan)

    def extend(self, guest: Task) -> bool:
        """Give a late guest one token of the buffer before its stretch; False if there is none."""
        loan = self.loan_of[guest]
        loans = self.loans_in[loan.host]
        before = loans[loans.index(loan) - 1].end if loans.index(loan) else 0
        if loan.start - 1 <= max(before, loan.host.generated):
            return False
        loan.start -= 1
        return True

    def overdue(self, notice: int) -> list[Task]:
        """Guests whose host reaches their stretch within ``notice`` steps."""
        return [g for g, loan in self.loan_of.items() if loan.start - loan.host.generated <= notice]

    def end(self, guest: Task) -> None:
        """End a guest's loan."""
        loan = self.loan_of.pop(guest, None)
        if loan is None:
            return
        if self.relend or loan.start <= loan.host.generated:
            self.loans_in[loan.host].remove(loan)
            if not self.loans_in[loan.host]:
                del self.loans_in[loan.host]
        else:
            loan.live = False

    def orphan(self, host: Task) -> list[Task]:
        """End the loans in a host's window; returns its guests, nearest first."""
        guests = [loan.guest for loan in self.loans_in.pop(host, ()) if loan.live]
        for guest in guests:
            del self.loan_of[guest]
        return guests

    def lent_tokens(self) -> int:
        """Tokens that are lent now."""
        return sum(loan.end - loan.start for loan in self.loan_of.values())
