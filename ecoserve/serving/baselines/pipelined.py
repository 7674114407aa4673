"""``pipelined``: exact allocation, and KV that is reserved but not reached yet is lent to guests.

A decode starts if a window of its own fits (``exact``); else if some host can lend it a stretch in which it will finish
before the host arrives (:mod:`~ecoserve.serving.baselines.lending`). A guest is charged for its prompt, and one block
more for rounding. If its host arrives first, the guest gets a window of its own if one fits, else it stops. When a host
ends early or loses its KV, its guests take over what it leaves: a stretch is never longer than half of its host's
window, so their windows fit there.

The buffer is ``buffer_tokens``, or as long as the guest stays at its own ``buffer_quantile``.
"""

from __future__ import annotations

from ecoserve.serving.baselines.exact import Exact
from ecoserve.serving.baselines.lending import Lending, Loan
from ecoserve.serving.core.kv_policy import PoolForecast
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task, TaskState

#: A host counts as arrived this many steps ahead: at depth 2 two of its tokens are under way.
NOTICE_STEPS = 2


class Pipelined(Exact):
    """Exact allocation with lending."""

    def __init__(self, settings: SchedulerSettings, ledger: Ledger, forecast: PoolForecast) -> None:
        super().__init__(settings, ledger, forecast)
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
        return -(-self.lending.lent_tokens() // self.ledger.block_size)
