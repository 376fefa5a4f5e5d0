"""Which server gets the next request, by the state alone: no clock, no sockets."""

from orchestrator.client.balancing import BalancedServer, Balancer, BalancingPolicy

POLICY = BalancingPolicy(
    consecutive_failures=3, base_ejection_s=10.0, max_ejection_s=25.0, max_ejection_percent=50
)


def three() -> tuple[Balancer, list[BalancedServer]]:
    balancer = Balancer(["a", "b", "c"], POLICY)
    return balancer, balancer.servers


def fail(balancer: Balancer, server: BalancedServer, now_s: float, *, times: int = 3) -> bool:
    return [balancer.failed(server, now_s, "broken") for _ in range(times)][-1]


def test_the_server_with_the_fewest_requests_under_way_is_asked_and_equals_take_turns() -> None:
    balancer, (a, b, c) = three()
    assert [balancer.pick("m", 0.0) for _ in range(6)] == [a, b, c, a, b, c]
    a.outstanding, b.outstanding, c.outstanding = 4, 2, 3
    assert [balancer.pick("m", 0.0) for _ in range(2)] == [b, b]
    assert balancer.pick("m", 0.0, without=[b]) is c
    assert balancer.pick("m", 0.0, without=[a, b, c]) is None


def test_failures_in_a_row_eject_a_server_for_longer_each_time_and_an_answer_between_does_not_count() -> None:
    balancer, (a, b, _) = three()
    assert not fail(balancer, a, 0.0, times=2)
    balancer.succeeded(a)
    assert not fail(balancer, a, 0.0, times=2)
    assert balancer.failed(a, 0.0, "broken")
    assert a.ejected_until_s == 10.0
    assert a.reason("m", 9.9) == "3 failures in a row, the last: broken"
    assert a not in balancer.able("m", 9.9)
    # Back, it gets one request, which ejects it again: twice as long, then the longest.
    assert a in balancer.able("m", 10.0)
    assert balancer.failed(a, 10.0, "broken")
    assert a.ejected_until_s == 30.0
    assert balancer.failed(a, 30.0, "broken")
    assert a.ejected_until_s == 55.0
    assert (a.ejections, b.ejections) == (3, 0)


def test_a_quiet_time_shortens_the_next_ejection() -> None:
    balancer, (a, *_) = three()
    fail(balancer, a, 0.0)
    balancer.checked(a, 15.0, {})
    assert a.backoff == 1
    balancer.checked(a, 20.0, {})
    assert a.backoff == 0
    fail(balancer, a, 20.0)
    assert a.ejected_until_s == 30.0


def test_no_more_than_the_largest_share_is_ejected_but_one_always_may_be() -> None:
    balancer, (a, b, _) = three()
    assert fail(balancer, a, 0.0)
    assert not fail(balancer, b, 0.0, times=9)
    assert b in balancer.able("m", 0.0)
    two = Balancer(["a", "b"], BalancingPolicy(consecutive_failures=1, max_ejection_percent=10))
    assert two.failed(two.servers[0], 0.0, "broken")
    assert not two.failed(two.servers[1], 0.0, "broken")


def test_failures_that_say_nothing_against_a_server_never_eject_it() -> None:
    balancer, (a, *_) = three()
    assert not any(balancer.failed(a, 0.0, "full", counts=False) for _ in range(20))
    assert (a.failed, a.in_a_row) == (20, 0)


def test_a_server_that_is_not_ready_is_left_out_for_all_models_or_for_one() -> None:
    balancer, (a, b, c) = three()
    balancer.checked(a, 0.0, {"": "it says that it is not ready"})
    balancer.checked(b, 0.0, {"m": "it says that model m is not ready"})
    assert balancer.able("m", 0.0) == [c]
    assert balancer.able("other", 0.0) == [b, c]
    balancer.checked(a, 1.0, {})
    assert balancer.able("m", 1.0) == [a, c]


def test_where_none_may_be_asked_any_is_but_those_that_serve_something_else() -> None:
    balancer, (a, b, c) = three()
    for one in (a, b):
        balancer.checked(one, 0.0, {"": "no sign of life in 2 s"})
    c.others["m"] = "it serves plan 2 as m, its neighbours plan 1"
    assert balancer.able("m", 0.0) == []
    assert {balancer.pick("m", 0.0) for _ in range(4)} == {a, b}
