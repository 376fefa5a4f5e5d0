"""The rows of the fault matrix: what is done, and what the service has to do all the same."""

from perf.routes.obedient import LENIENT, OBEDIENT, ONNX_MEMBERS, STRICT
from tests.faults import injections as do
from tests.faults.frame import FaultRow

FIRST, MIDDLE = ONNX_MEMBERS[:2]
NONE: frozenset[str] = frozenset()
# Calls that Triton itself fails are INTERNAL; a cascade that is unloaded for a repair is NOT_FOUND or UNAVAILABLE.
DEAD = frozenset({"UNAVAILABLE", "INTERNAL", "NOT_FOUND"})
# A server that dies cancels what it holds.
GONE = DEAD | {"CANCELLED"}
UNLOADED = frozenset({"UNAVAILABLE", "NOT_FOUND"})
# A member that refuses some rows and answers others: the rows are at fault, as soon as that is known.
REFUSED = frozenset({"UNAVAILABLE", "INVALID_ARGUMENT"})

ROWS = (
    FaultRow(
        name="cascade_killed_idle",
        says="the cascade's process is killed while nobody asks",
        inject=do.killed(STRICT), errors=GONE, hold_s=0, idle=True, restarts=True,
    ),
    FaultRow(
        name="cascade_killed",
        says="the cascade's process is killed under load",
        inject=do.killed(STRICT), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="first_member_killed",
        says="the first member's process is killed under load",
        inject=do.killed(FIRST), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="later_member_killed_idle",
        says="a later member's process is killed while nobody asks",
        inject=do.killed(MIDDLE), errors=DEAD, hold_s=0, idle=True,
    ),
    FaultRow(
        name="later_member_killed",
        says="a later member's process is killed under load",
        inject=do.killed(OBEDIENT), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="server_killed",
        says="Triton is killed under load",
        inject=do.killed(None), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="member_hangs",
        says="the last member hangs on marked rows for 6 s",
        inject=do.ordered("hang", marked=True), hold_s=6, spared=2, marked=True,
    ),
    FaultRow(
        name="lenient_member_hangs",
        says="the last member hangs on marked rows for 6 s, under `on_failure: answer`",
        inject=do.ordered("hang", marked=True), hold_s=6, errors=NONE, spared=2, marked=True, flags=True,
        model=LENIENT,
    ),
    FaultRow(
        name="member_slow",
        says="each call of the last member takes 0.15 s longer",
        inject=do.ordered("slow"), hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="member_fails",
        says="the last member fails for 2 s",
        inject=do.ordered("fail"), hold_s=2, spared=2,
    ),
    FaultRow(
        name="member_fails_on_marked_rows",
        says="the last member fails on marked rows",
        inject=do.ordered("fail", marked=True), hold_s=2, spared=2, marked=True, errors=REFUSED,
    ),
    FaultRow(
        name="lenient_member_fails",
        says="the last member fails, under `on_failure: answer`",
        inject=do.ordered("fail"), hold_s=2, errors=NONE, spared=2, flags=True, model=LENIENT,
    ),
    FaultRow(
        name="breaker",
        says="the last member fails until its breaker opens, and works again",
        inject=do.breaker_opened, hold_s=4, spared=2,
    ),
    FaultRow(
        name="member_frozen",
        says="the last member's process is stopped (SIGSTOP) for 3 s and continued",
        inject=do.frozen(OBEDIENT), errors=GONE, hold_s=3, restarts=True,
    ),
    FaultRow(
        name="first_member_frozen",
        says="the first member's process is stopped (SIGSTOP) for 3 s and continued",
        inject=do.frozen(FIRST), errors=GONE, hold_s=3, restarts=True,
    ),
    FaultRow(
        name="member_replaced",
        says="a later member's file is replaced by another model's for 6 s",
        inject=do.file_replaced, hold_s=6, errors=UNLOADED,
    ),
    FaultRow(
        name="member_removed",
        says="a later member's file is removed for 6 s",
        inject=do.moved_away("*/model.onnx"), hold_s=6, errors=UNLOADED,
    ),
    FaultRow(
        name="version_missing",
        says="a later member's version folder is removed for 6 s",
        inject=do.moved_away("1"), hold_s=6, errors=UNLOADED,
    ),
    FaultRow(
        name="plan_swapped",
        says="a new version of the plan is loaded, and the old one again",
        inject=do.plan_swapped, hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="plan_without_member",
        says="a new version of the plan that names a missing member is to be loaded",
        inject=do.plan_without_member, hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="table_full",
        says="the last member hangs and twelve clients fill the table of deferred rows",
        inject=do.asked_besides("hang", clients=12, most_rows=64, deepest=True, pause_s=0.0), hold_s=4, spared=1,
    ),
    FaultRow(
        name="deadlines_pass",
        says="requests name deadlines of 0.1 s while the last member is slow",
        inject=do.asked_besides("slow", clients=4, parameters=lambda _: {"deadline_us": 100_000}), hold_s=2,
        flags=True,
    ),
    FaultRow(
        name="clients_cancel",
        says="clients cancel 200 requests a second while the last member is slow",
        inject=do.cancelling_clients, hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="clients_leave",
        says="two clients are killed with 64 requests under way each",
        inject=do.leaving_clients, hold_s=1, errors=NONE,
    ),
    FaultRow(
        name="bad_requests",
        says="requests of wrong shapes, dtypes and parameters among the others",
        inject=do.bad_requests, hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="huge_shape",
        says="174 bytes over HTTP: a shape of a billion rows",
        inject=do.posted(do.SHAPE_BODY), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="deep_json",
        says="JSON 200,000 levels deep over HTTP",
        inject=do.posted(do.NESTED_BODY), errors=GONE, hold_s=0, restarts=True,
    ),
    FaultRow(
        name="disk_full",
        says="`committee batch` on a full disk, under load",
        inject=do.batch_on_a_full_disk, errors=NONE,
    ),
    FaultRow(
        name="metrics_scraped",
        says="eight scrapers read the metrics without a pause",
        inject=do.metrics_scraped, hold_s=2, errors=NONE,
    ),
    FaultRow(
        name="stop",
        says="`committee serve` is told to stop under load",
        inject=do.stopped, hold_s=0, ends=True,
    ),
    FaultRow(
        name="stop_with_idle_stream",
        says="`committee serve` is told to stop while an idle gRPC stream is open",
        inject=do.stopped_with_an_idle_stream, hold_s=0, idle=True, ends=True,
    ),
)  # fmt: skip
