"""How long whoever has ended replicas waits, and when that is forgiven."""

from __future__ import annotations

from serve_app.config.limits import BackoffRules
from serve_app.scheduler.core.backoff import Backoff
from serve_app.store.database.changes import OwnerCharged

RULES = BackoffRules(first_s=10, longest_s=35, forgiven_s=100)
ANN, BEN = ("ann", None), ("ben", None)


def test_waits_double_up_to_the_longest_and_losses_are_forgiven_one_by_one():
    backoff = Backoff(RULES)
    waits = [backoff.charge(ANN, 1000.0).until_s - 1000.0 for _ in range(4)]
    assert waits == [10, 20, 35, 35]
    assert (backoff.blocks(ANN), backoff.blocks(BEN)) == (True, False)
    assert backoff.advance(1034.9) == set()
    assert backoff.advance(1035.0) == {ANN}
    assert not backoff.blocks(ANN)
    assert backoff.of(ANN).alone
    for at_s, left in ((1099.0, 4), (1100.0, 3), (1299.0, 2), (1300.0, 1), (1400.0, 0)):
        assert backoff.advance(at_s) == set()
        assert backoff.of(ANN).count == left
    assert list(backoff.owners()) == [], "nothing is kept of who is forgiven"
    assert backoff.charge(ANN, 2000.0).until_s == 2010.0
    assert backoff.totals == {"ann": 5}


def test_what_earlier_lives_have_counted_goes_on():
    backoff = Backoff(RULES, [OwnerCharged("ann", None, 2, 1000.0, 1020.0), OwnerCharged("ben", None, 1, 900.0, 910.0)])
    assert backoff.advance(1010.0) == {BEN}, "who has waited while there was no scheduler"
    assert (backoff.blocks(ANN), backoff.of(ANN).alone) == (True, True)
    assert backoff.charge(ANN, 1015.0).until_s == 1050.0
    assert backoff.of(BEN).count == 0


def test_what_is_forgiven_after_a_long_time_is_no_more_than_there_was():
    backoff = Backoff(RULES)
    backoff.charge(ANN, 0.0)
    assert backoff.advance(1e9) == {ANN}
    assert list(backoff.owners()) == []


def test_a_clock_that_is_set_back_makes_nobody_wait_longer_than_ever():
    backoff = Backoff(RULES)
    backoff.charge(ANN, 1e6)
    backoff.advance(1e6)
    assert backoff.advance(1000.0) == set()
    assert backoff.advance(1000.0 + RULES.longest_s) == {ANN}


def test_no_first_wait_is_no_wait():
    backoff = Backoff(BackoffRules(first_s=0))
    backoff.charge(ANN, 5.0)
    assert backoff.advance(5.0) == {ANN}
