"""``pipelined``: exact allocation, and KV that is reserved but not reached yet is lent to guests.

A *host* with a window of L tokens, g of them generated, reaches the tokens behind g + t after t steps. A *guest* whose
own window is w may use a stretch of w tokens there, from ``start``, if it finishes before the host arrives:

    start - g >= w + buffer        (time: every step gives both one token)
    start + w <= end of the gap    (space: inside the host's window, clear of other guests)

A decode starts if a window of its own fits (``exact``), else if some host can lend it a stretch. A guest is charged for
its prompt and one block for rounding, and is a host to others in the same way, ``depth`` levels deep. If its host
arrives first, it gets a window of its own if one fits, else it stops. When a host ends early or loses its KV, its
guests
take over what it leaves: a stretch is never longer than half of its host's window. The buffer is ``buffer_tokens``, or
as long as the guest stays at its own ``buffer_quantile``.

Source: EcoServe (arXiv 2411.06364), KV pipelining; what it leaves open (several guests, re-lending, late guests) is
decided here.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from ecoserve.serving.baselines.exact import Exact
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState


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
        buffer: tokens between a guest's end and its host's arrival, >= 0. depth: levels of guests, >= 1.
        relend: whether a stretch is lent again once its guest has finished.
    """

    def __init__(self, buffer: int, depth: int, relend: bool) -> None:
        self.buffer = buffer
        self.depth = depth
        self.relend = relend
        #: guest -> its loan; host -> loans in its window, by start
        self.loan_of: dict[Task, Loan] = {}
        self.loans_in: dict[Task, list[Loan]] = {}

    def find(self, hosts: Iterable[Task], guest: Task, window: int, stay: int) -> Loan | None:
        """The stretch for ``window`` tokens and ``stay`` steps whose host arrives soonest; None if there is none."""
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
        return sum(loan.end - loan.start for loan in self.loan_of.values())


#: A host counts as arrived this many steps ahead: at depth 2 two of its tokens are under way.
NOTICE_STEPS = 2


class Pipelined(Exact):
    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: Forecast, ordering: Ordering) -> None:
        super().__init__(settings, ledger, forecast, ordering)
        buffer = settings.buffer_tokens if settings.buffer_quantile is None else 0
        self.lending = Lending(buffer + NOTICE_STEPS, settings.lending_depth, settings.relend)

    def charge(self, task: Task) -> int:
        loan = self.lending.loan_of.get(task)
        if loan is None:
            return super().charge(task)
        return self.ledger.blocks(loan.base_tokens) + 1

    def admits_prompt(self, task: Task) -> bool:
        if super().admits_prompt(task):
            return True
        prompt = self.ledger.blocks(task.span_tokens() + 1) + 1
        if self._promised_blocks + self._claimed_blocks + prompt > self.open_blocks:
            return False
        return self._loan_for(task) is not None

    def admits_new_decode(self, task: Task) -> bool:
        return super().admits_new_decode(task) or self._borrows(task)

    def admits_decode(self, task: Task) -> bool:
        return super().admits_decode(task) or self._borrows(task)

    def _borrows(self, task: Task) -> bool:
        """Take a loan for a decode without a window, if there is one and what the decode holds fits by itself."""
        held = self.lending.loan_of.get(task)
        if held is not None:
            return held.fresh
        if self.lending.loans_in.get(task):
            return False
        self._recount()
        loan = self._loan_for(task)
        if loan is None:
            return False
        before = self.charge(task)
        charge = self.ledger.blocks(loan.base_tokens) + 1
        if self._promised_blocks - before + charge > self.open_blocks:
            return False
        self.lending.lend(loan)
        self._promised_blocks += charge - before
        return True

    def _loan_for(self, task: Task) -> Loan | None:
        window = self.promise(task) - task.generated
        stay = window
        if self.settings.buffer_quantile is not None:
            posterior = task.lengths.given_longer_than(task.generated)
            stay = max(stay, posterior.quantile(self.settings.buffer_quantile) - task.generated)
        hosts = (t for t in self.ledger.holders() if t.promised and t.state is TaskState.DECODE)
        return self.lending.find(hosts, task, window, stay)

    def reserve_for(self, task: Task, response_tokens: int) -> None:
        """A guest that needs more than its loan has a window of its own from then on."""
        loan = self.lending.loan_of.get(task)
        if loan is not None and not loan.fresh:
            self.evict(task)
        elif loan is not None:
            loan.fresh = False
        super().reserve_for(task, response_tokens)

    def extends(self, task: Task) -> bool:
        """A guest's own unlent space is the buffer before its stretch."""
        if task not in self.lending.loan_of:
            return super().extends(task)
        if not self.lending.extend(task):
            return False
        task.promised = min(task.limit, task.generated + 1)
        return True

    def rehome(self, guest: Task) -> bool:
        if not self._fits(guest, guest.promised, self.open_blocks):
            return False
        self.evict(guest)
        return True

    def overdue_guests(self) -> list[Task]:
        return self.lending.overdue(NOTICE_STEPS)

    def evict(self, guest: Task) -> None:
        before = self.charge(guest)
        self.lending.end(guest)
        self._promised_blocks += self.charge(guest) - before

    def on_release(self, task: Task) -> None:
        super().on_release(task)
        self.lending.end(task)
        self.lending.orphan(task)
        self._stale = True

    def lent_blocks(self, reserved: int | None = None) -> int:
        return math.ceil(self.lending.lent_tokens() * self.ledger.kv_use.blocks_per_token)
