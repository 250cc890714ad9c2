"""Test the ledger: who works on what, whatever happens and in whatever order; no Ray, no clock.

The worked examples say what each event brings; the state machine tries all orders of them and holds
what must never break: one lease an item, each item committed exactly once, late attempts fenced.
"""

from collections import Counter

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from workers.ledger import (
    MAX_ATTEMPTS,
    MAX_STILLBORN,
    NODE_WORKERS,
    Abort,
    Commit,
    Event,
    Grant,
    Instruction,
    ItemFailed,
    ItemFinished,
    Ledger,
    Progressed,
    Replace,
    Tick,
    WorkerLost,
    WorkerReady,
)


def ledger_of(*items: str, patience: float = 60.0) -> Ledger:
    ledger = Ledger(patience=patience)
    ledger.add(items)
    return ledger


def tell(ledger: Ledger, event: Event, at: float) -> list[Instruction]:
    """``at`` in seconds."""
    return ledger.handle(event, float(at))


# --- worked examples -----------------------------------------------------------------------------


def test_a_ready_worker_is_granted_the_first_waiting_item() -> None:
    ledger = ledger_of("a", "b")
    assert tell(ledger, WorkerReady("w1"), 0) == [Grant("w1", "a", 1)]
    assert tell(ledger, WorkerReady("w2"), 0) == [Grant("w2", "b", 1)]
    assert tell(ledger, WorkerReady("w3"), 0) == []


def test_a_finished_item_is_committed_before_its_worker_gets_the_next() -> None:
    ledger = ledger_of("a", "b")
    tell(ledger, WorkerReady("w1"), 0)
    assert tell(ledger, ItemFinished("w1", "a", 1), 1) == [
        Commit("a", 1, "w1"),
        Grant("w1", "b", 1),
    ]
    assert not ledger.finished
    assert tell(ledger, ItemFinished("w1", "b", 1), 2) == [Commit("b", 1, "w1")]
    assert ledger.finished


def test_without_items_everything_is_finished_at_once() -> None:
    assert Ledger().finished


def test_a_worker_that_is_ready_twice_gets_one_lease() -> None:
    ledger = ledger_of("a", "b")
    tell(ledger, WorkerReady("w1"), 0)
    assert tell(ledger, WorkerReady("w1"), 0) == []


def test_the_item_of_a_lost_worker_goes_first_to_the_next_one() -> None:
    ledger = ledger_of("a", "b", "c")
    tell(ledger, WorkerReady("w1"), 0)
    assert tell(ledger, WorkerLost("w1", "killed"), 1) == [Replace("w1", "killed")]
    assert tell(ledger, WorkerReady("w2"), 2) == [Grant("w2", "a", 2)]


def test_the_item_of_a_lost_worker_goes_at_once_to_an_idle_one() -> None:
    ledger = ledger_of("a")
    tell(ledger, WorkerReady("w1"), 0)
    tell(ledger, WorkerReady("w2"), 0)
    assert tell(ledger, WorkerLost("w1", "killed"), 1) == [
        Replace("w1", "killed"),
        Grant("w2", "a", 2),
    ]


def test_an_idle_worker_that_is_lost_is_replaced_and_never_granted_anything() -> None:
    ledger = ledger_of()
    tell(ledger, WorkerReady("w1"), 0)
    assert tell(ledger, WorkerLost("w1", "killed"), 1) == [Replace("w1", "killed")]
    ledger.add(["a"])
    assert tell(ledger, Tick(), 2) == []
    assert tell(ledger, WorkerReady("w2"), 3) == [Grant("w2", "a", 1)]


def test_a_hung_lease_is_given_to_another_after_the_patience() -> None:
    ledger = ledger_of("a", patience=60.0)
    tell(ledger, WorkerReady("w1"), 0)
    tell(ledger, WorkerReady("w2"), 0)
    assert tell(ledger, Tick(), 60) == []
    replaced, granted = tell(ledger, Tick(), 61)
    assert isinstance(replaced, Replace)
    assert replaced.worker == "w1"
    assert "60 s" in replaced.reason
    assert granted == Grant("w2", "a", 2)


def test_progress_renews_a_lease() -> None:
    ledger = ledger_of("a", patience=60.0)
    tell(ledger, WorkerReady("w1"), 0)
    tell(ledger, Progressed("w1"), 50)
    assert tell(ledger, Tick(), 100) == []
    assert tell(ledger, Tick(), 111)[0] == Replace("w1", "no progress for 60 s")


def test_progress_of_a_worker_without_a_lease_means_nothing() -> None:
    ledger = ledger_of("a")
    assert tell(ledger, Progressed("nobody"), 0) == []
    assert tell(ledger, WorkerReady("w1"), 0) == [Grant("w1", "a", 1)]


@pytest.mark.parametrize("late", ["finished", "failed"])
def test_a_worker_given_up_for_dead_that_comes_back_changes_nothing(late: str) -> None:
    ledger = ledger_of("a", patience=60.0)
    tell(ledger, WorkerReady("w1"), 0)
    tell(ledger, Tick(), 61)
    tell(ledger, WorkerReady("w2"), 62)
    event = (
        ItemFinished("w1", "a", 1)
        if late == "finished"
        else ItemFailed("w1", "a", 1, "NaN", final=True)
    )
    assert tell(ledger, event, 63) == []
    assert not ledger.finished
    assert tell(ledger, ItemFinished("w2", "a", 2), 64) == [Commit("a", 2, "w2")]


def test_an_earlier_attempt_of_the_same_worker_is_fenced() -> None:
    ledger = ledger_of("a")
    tell(ledger, WorkerReady("w1"), 0)
    again = tell(ledger, ItemFailed("w1", "a", 1, "flaky", final=False), 1)
    assert again == [Grant("w1", "a", 2)]
    assert tell(ledger, ItemFinished("w1", "a", 1), 2) == []
    assert tell(ledger, ItemFinished("w1", "a", 2), 3) == [Commit("a", 2, "w1")]


def test_a_final_failure_aborts_with_its_reason_and_grants_nothing_more() -> None:
    ledger = ledger_of("a", "b")
    tell(ledger, WorkerReady("w1"), 0)
    assert tell(ledger, ItemFailed("w1", "a", 1, "NaN in relu1", final=True), 1) == [
        Abort("a", "NaN in relu1")
    ]
    assert tell(ledger, WorkerReady("w2"), 2) == []


def test_an_item_that_takes_down_worker_after_worker_aborts_and_tells_the_last_reason() -> None:
    ledger = ledger_of("poison", "b")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        worker = f"w{attempt}"
        assert tell(ledger, WorkerReady(worker), attempt) == [Grant(worker, "poison", attempt)]
        instructions = tell(ledger, WorkerLost(worker, f"signal {attempt}"), attempt)
    assert instructions == [
        Replace(worker, f"signal {MAX_ATTEMPTS}"),
        Abort(
            "poison",
            f"given up after {MAX_ATTEMPTS} attempts; the last: "
            f"worker {worker}: signal {MAX_ATTEMPTS}; a worker that takes more memory than there "
            "is dies like this, too: see the node's log",
        ),
    ]


def test_an_item_that_raises_again_and_again_aborts() -> None:
    ledger = ledger_of("a")
    tell(ledger, WorkerReady("w1"), 0)
    for attempt in range(1, MAX_ATTEMPTS):
        assert tell(ledger, ItemFailed("w1", "a", attempt, "flaky", False), attempt) == [
            Grant("w1", "a", attempt + 1)
        ]
    (abort,) = tell(ledger, ItemFailed("w1", "a", MAX_ATTEMPTS, "flaky", False), 9)
    assert isinstance(abort, Abort)
    assert "flaky" in abort.reason


def test_attempts_are_counted_for_each_item_alone() -> None:
    ledger = ledger_of("a", "b")
    tell(ledger, WorkerReady("w1"), 0)
    for item in ("a", "b"):
        for attempt in range(1, MAX_ATTEMPTS):
            tell(ledger, ItemFailed("w1", item, attempt, "flaky", final=False), 1)
        finished = tell(ledger, ItemFinished("w1", item, MAX_ATTEMPTS), 2)
        assert finished[0] == Commit(item, MAX_ATTEMPTS, "w1")
    assert ledger.finished


def test_workers_that_die_before_they_are_ready_are_not_replaced_for_ever() -> None:
    ledger = ledger_of("a")
    for number in range(1, MAX_STILLBORN):
        assert tell(ledger, WorkerLost(f"w{number}", "no memory"), 0) == [
            Replace(f"w{number}", "no memory")
        ]
    (abort,) = tell(ledger, WorkerLost(f"w{MAX_STILLBORN}", "no memory"), 0)
    assert abort == Abort(
        None,
        f"{MAX_STILLBORN} workers in a row died before they were ready; the last, "
        f"w{MAX_STILLBORN}: no memory",
    )


def test_a_node_that_dies_while_its_workers_start_does_not_fail_the_job() -> None:
    ledger = ledger_of("a")
    ledger.workers = 16
    for number in range(3 * NODE_WORKERS - 1):
        lost = tell(ledger, WorkerLost(f"w{number}", "node gone"), 0)
        assert lost == [Replace(f"w{number}", "node gone")]
    (abort,) = tell(ledger, WorkerLost("w", "node gone"), 0)
    assert isinstance(abort, Abort) and "24 workers in a row" in abort.reason


@pytest.mark.parametrize("sign", ["a ready worker", "a finished item"])
def test_a_sign_of_life_between_them_forgives_the_workers_that_died(sign: str) -> None:
    ledger = ledger_of("a", "b")
    tell(ledger, WorkerReady("good"), 0)
    for number in range(MAX_STILLBORN - 1):
        tell(ledger, WorkerLost(f"bad{number}", "no memory"), 0)
    event = WorkerReady("better") if sign == "a ready worker" else ItemFinished("good", "a", 1)
    tell(ledger, event, 0)
    assert tell(ledger, WorkerLost("worse", "no memory"), 0) == [Replace("worse", "no memory")]


def test_the_loss_of_workers_that_were_ready_is_no_stillbirth() -> None:
    ledger = ledger_of()
    for number in range(5 * MAX_STILLBORN):
        tell(ledger, WorkerReady(f"w{number}"), number)
        assert tell(ledger, WorkerLost(f"w{number}", "spot instance gone"), number) == [
            Replace(f"w{number}", "spot instance gone")
        ]


# --- every order ---------------------------------------------------------------------------------


class Cluster(RuleBasedStateMachine):
    """A driver and its workers, with everything that can happen to them.

    Attempts that were given up stay around as ``ghosts`` and may still report.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.started = 0
        self.starting: set[str] = set()
        self.working: dict[str, Grant] = {}
        self.ghosts: list[Grant] = []
        self.committed: Counter[str] = Counter()
        self.aborted: Abort | None = None
        self.granted: Counter[str] = Counter()

    @initialize(items=st.integers(0, 6), workers=st.integers(1, 4))
    def start(self, items: int, workers: int) -> None:
        self.items = [f"item{number}" for number in range(items)]
        self.ledger = ledger_of(*self.items, patience=10.0)
        for _ in range(workers):
            self._start_worker()

    def _start_worker(self) -> None:
        self.started += 1
        self.starting.add(f"w{self.started}")

    def _obey(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if self.aborted:
                assert isinstance(instruction, Replace), "nothing is granted after an abort"
            match instruction:
                case Grant(worker, item, attempt):
                    self.granted[item] += 1
                    assert self.granted[item] == attempt <= MAX_ATTEMPTS
                    assert worker not in self.working
                    assert worker not in self.starting
                    assert item not in [grant.item for grant in self.working.values()]
                    assert not self.committed[item]
                    self.working[worker] = instruction
                case Commit(item, attempt, worker):
                    assert self.working.pop(worker) == Grant(worker, item, attempt)
                    self.committed[item] += 1
                case Replace(worker, _):
                    if worker in self.working:
                        self.ghosts.append(self.working.pop(worker))
                    self.starting.discard(worker)
                    self._start_worker()
                case Abort():
                    self.aborted = instruction

    def _tell(self, event: Event) -> None:
        self._obey(self.ledger.handle(event, self.now))

    @precondition(lambda self: self.starting and not self.aborted)
    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(worker)
        self._tell(WorkerReady(worker))

    @precondition(lambda self: self.starting and not self.aborted)
    @rule(data=st.data())
    def dies_while_starting(self, data: st.DataObject) -> None:
        self._tell(WorkerLost(data.draw(st.sampled_from(sorted(self.starting))), "no memory"))

    @precondition(lambda self: self.working and not self.aborted)
    @rule(data=st.data())
    def finishes(self, data: st.DataObject) -> None:
        grant = self.working[data.draw(st.sampled_from(sorted(self.working)))]
        self._tell(ItemFinished(grant.worker, grant.item, grant.attempt))
        assert self.committed[grant.item] == 1

    @precondition(lambda self: self.working and not self.aborted)
    @rule(data=st.data(), final=st.sampled_from([False, False, False, True]))
    def fails(self, data: st.DataObject, final: bool) -> None:
        grant = self.working.pop(data.draw(st.sampled_from(sorted(self.working))))
        self.ghosts.append(grant)
        self._tell(ItemFailed(grant.worker, grant.item, grant.attempt, "raised", final))
        assert (self.aborted is not None) >= final

    @precondition(lambda self: self.working and not self.aborted)
    @rule(data=st.data())
    def is_killed(self, data: st.DataObject) -> None:
        self._tell(WorkerLost(data.draw(st.sampled_from(sorted(self.working))), "killed"))

    @precondition(lambda self: self.ghosts and not self.aborted)
    @rule(data=st.data(), finished=st.booleans(), final=st.booleans())
    def reports_late(self, data: st.DataObject, finished: bool, final: bool) -> None:
        ghost = data.draw(st.sampled_from(self.ghosts))
        before = dict(self.ledger.leases)
        if finished:
            self._tell(ItemFinished(ghost.worker, ghost.item, ghost.attempt))
        else:
            self._tell(ItemFailed(ghost.worker, ghost.item, ghost.attempt, "raised", final))
        assert self.ledger.leases == before, "a late report moved a lease"

    @precondition(lambda self: not self.aborted)
    @rule(seconds=st.sampled_from([1.0, 6.0, 30.0]), moved=st.booleans(), data=st.data())
    def time_passes(self, seconds: float, moved: bool, data: st.DataObject) -> None:
        self.now += seconds
        alive = None
        if moved and self.working:
            alive = data.draw(st.sampled_from(sorted(self.working)))
            self._tell(Progressed(alive))
        self._tell(Tick())
        assert alive is None or alive in self.working or self.aborted

    @precondition(lambda self: self.aborted)
    @rule(event=st.sampled_from([WorkerReady("late"), Tick()]))
    def has_failed(self, event: Event) -> None:
        self.now += 1000
        granted = [i for i in self.ledger.handle(event, self.now) if isinstance(i, Grant)]
        assert not granted, "nothing is granted after an abort"

    @invariant()
    def ledger_and_cluster_agree(self) -> None:
        if not self.started or self.aborted:
            return
        held = {worker: (g.item, g.attempt) for worker, g in self.working.items()}
        assert {w: (x.item, x.attempt) for w, x in self.ledger.leases.items()} == held
        assert max(self.committed.values(), default=0) <= 1
        left = [item for item in self.items if not self.committed[item]]
        assert self.ledger.finished == (not left)
        waiting = list(self.ledger.waiting)
        assert sorted(waiting + [g.item for g in self.working.values()]) == sorted(left)
        assert not (waiting and self.ledger.idle), "somebody is idle while an item waits"

    def teardown(self) -> None:
        """From wherever it got: with workers that live, everything is committed exactly once."""
        if not self.started or self.aborted:
            return
        while not self.ledger.finished:
            if self.working:
                grant = next(iter(self.working.values()))
                self._tell(ItemFinished(grant.worker, grant.item, grant.attempt))
            else:
                self._tell(WorkerReady(self.starting.pop()))
        assert self.committed == Counter(self.items)


def test_any_order_of_events_commits_every_item_exactly_once() -> None:
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # shrinking takes minutes
        ),
    )
