"""Headers that Triton forwards among the parameters, told from parameters of a cascade."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decision import DEFAULT, PARAMETERS, ForwardedHeaders, Policy, policy_from_parameters
from orchestrator.errors import InputError
from orchestrator.spec.request import MAX_HEADER_NAME, header_pattern_fault, header_regex

# What gateways, meshes, browsers and clients of both protocols send.
_SENT = """
x-request-id X-Request-Id X-Forwarded-For x-forwarded-proto x-real-ip x-envoy-attempt-count x-b3-traceid b3
traceparent tracestate baggage Traceparent uber-trace-id sentry-trace x-amzn-trace-id x-cloud-trace-context
x-datadog-trace-id newrelic grpc-trace-bin grpc-accept-encoding forwarded Via user-agent authorization
Authorization proxy-authorization apikey x-api-key cookie Cookie content-type Content-Length accept
Accept-Encoding inference-header-content-length host Host :authority :path te connection keep-alive upgrade
cf-ray cf-connecting-ip true-client-ip origin referer sec-fetch-mode dnt pragma cache-control if-none-match
range expect priority Priority timeout Timeout date from warning max-forwards x-max-stage x-gear
triton-grpc-protocol-key committee-control
"""
SENT = _SENT.split()


def policy_of(parameters: dict[str, object], pattern: str | None = None) -> Policy:
    headers = ForwardedHeaders(pattern)
    return policy_from_parameters(parameters, 3, now_us=0, headers=headers)


@pytest.mark.parametrize("name", SENT)
def test_headers_as_gateways_send_them_change_nothing(name: str) -> None:
    assert policy_of({name: "any value"}) is DEFAULT
    assert policy_of({name: "1", "max_stage": 1}) == Policy(max_stage=1)


# What somebody writes, and the parameter that is meant.
_MISSPELT = """
max_stages:max_stage maxstage:max_stage MAX_STAGE:max_stage max-stage:max_stage Max-Stage:max_stage
min_stag:min_stage treshold_shift:threshold_shift threshold-shift:threshold_shift gears:gear deadline:deadline_us
deadline_ms:deadline_us deadline_at:deadline_at_us
"""
MISSPELT = [pair.split(":") for pair in _MISSPELT.split()]


@pytest.mark.parametrize(("name", "nearest"), MISSPELT)
@pytest.mark.parametrize("value", [1, "1", 0.5, True])
def test_a_misspelt_parameter_is_refused_with_the_nearest(name: str, nearest: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"got '{name}', expected only .*; did you mean {nearest}\?$"):
        policy_of({"x-request-id": "7", name: value})


@pytest.mark.parametrize("value", [1, 0.5, True])
@pytest.mark.parametrize("name", ["x-speed", "traceparent", "b3"])
def test_what_is_no_string_is_no_header(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        policy_of({name: value})


def test_a_string_of_a_name_like_ours_is_refused_with_where_to_name_it() -> None:
    with pytest.raises(InputError, match="if it is a header that Triton forwards, name it in the plan's"):
        policy_of({"my_header_1": "x"})
    assert policy_of({"my_header_1": "x", "X-A": "y"}, "my_header|x-") is DEFAULT


def test_a_pattern_widens_or_narrows_and_takes_any_case() -> None:
    narrow = "^x-request-id$|^traceparent$"
    assert policy_of({"X-Request-ID": "7", "Traceparent": "0"}, narrow) is DEFAULT
    for name in ("x-request-id-2", "x-other", "authorization"):
        with pytest.raises(InputError, match=name):
            policy_of({name: "1"}, narrow)
    with pytest.raises(InputError, match="x-request-id"):
        policy_of({"x-request-id": "1"}, "^$")


def test_no_pattern_hides_a_parameter_or_lets_a_wrong_value_pass() -> None:
    assert policy_of({"max_stage": 1, "speed": "2"}, ".*") == Policy(max_stage=1)
    with pytest.raises(InputError, match="max_stage"):
        policy_of({"max_stage": "1"}, ".*")
    with pytest.raises(InputError, match="speed"):
        policy_of({"speed": 2}, ".*")


def test_a_name_that_is_too_long_is_not_tried_on_a_pattern() -> None:
    name = "x" * (MAX_HEADER_NAME + 1)
    assert policy_of({name[1:]: "1"}, "x") is DEFAULT
    with pytest.raises(InputError, match="xxx"):
        policy_of({name: "1"}, "x")
    # The rule without a pattern is quick whatever the length.
    assert policy_of({f"x-{name}": "1"}) is DEFAULT


@given(st.lists(st.text(max_size=20), max_size=2000, unique=True))
def test_names_of_strangers_do_not_fill_the_memory(names: list[str]) -> None:
    headers = ForwardedHeaders()
    first = [headers.is_header(name, "1") for name in names]
    assert [headers.is_header(name, "1") for name in names] == first
    for number in range(1100):
        headers.is_header(f"x-{number}", "1")
    assert headers._kept.cache_info().currsize <= 1024


@given(st.text(max_size=30))
def test_a_name_is_a_header_or_ours_whatever_its_case(name: str) -> None:
    headers = ForwardedHeaders()
    assert not (headers.is_header(name, "1") and name in PARAMETERS)
    if name.isascii():
        assert headers.is_header(name, "1") == headers.is_header(name.upper(), "1") or name in PARAMETERS


_TAKEN = "x-.*|traceparent .* (x-request-id|traceparent).* .*-.*|b3 x-.*|.*-id$|.*trace.* ^$ a{2,5}-"


@pytest.mark.parametrize("pattern", _TAKEN.split())
def test_patterns_people_write_are_taken(pattern: str) -> None:
    assert header_pattern_fault(pattern) is None


@given(st.text(max_size=30) | st.text("ab(|)*+?{}[]^$\\\\.:=!<>P0123456789,-iuxLs", max_size=30))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_any_text_is_a_pattern_or_refused_in_one_line(pattern: str) -> None:
    fault = header_pattern_fault(pattern)
    if fault is None:
        header_regex(pattern).search("x-request-id")
    else:
        assert "expected" in fault


@pytest.mark.parametrize("pattern", ["", "(x", "(?u)x", "*", "x{9999999999999}", "(?-i)X", 7, None, ["x"]])
def test_what_is_no_regular_expression_is_refused(pattern: object) -> None:
    assert "expected a regular expression" in str(header_pattern_fault(pattern))


_SLOW = r"""
(a+)+$ (a|aa)+$ (a|b|ab)*c (x?){40}x{40} .*.*.*.*x ((a*)*)* (?:a{0,9}){0,9}b x*x*(?=(?:x|y){50}!) (.*)(.*)\1\2$
"""


@pytest.mark.parametrize("pattern", [*_SLOW.split(), "a?" * 25 + "a" * 25])
def test_patterns_that_could_take_for_ever_are_refused(pattern: str) -> None:
    assert "could take too long" in str(header_pattern_fault(pattern))


ATOMS = st.sampled_from(
    ["a", "b", "-", ".", "[ab]", "a?", "a*", ".*", "b+", "(ab|a)", "(a|b-)?", "a{0,9}", "(?=a)", "^", "$"]
)


@given(st.lists(ATOMS, min_size=1, max_size=8), st.text("ab-", max_size=MAX_HEADER_NAME))
def test_no_pattern_that_is_taken_takes_long(atoms: list[str], name: str) -> None:
    pattern = "".join(atoms)
    if header_pattern_fault(pattern) is not None:
        return
    worst = (name, "a" * MAX_HEADER_NAME, "ab" * (MAX_HEADER_NAME // 2), "a" * (MAX_HEADER_NAME - 1) + "c")
    start_s = time.process_time()
    for one in worst:
        header_regex(pattern).search(one)
    assert time.process_time() - start_s < 1
