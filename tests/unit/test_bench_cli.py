"""The command, and that every workload delivers what it counts. No figure is judged here."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rabble.bench
from rabble import cli
from rabble._core.envelope import Envelope
from rabble._core.ids import Pid
from rabble.bench import (
    WORKLOADS,
    Workload,
    api,
    calls,
    codec,
    creation,
    crowd,
    erlang,
    footprint,
    forming,
    forming_side,
    gate,
    groups,
    instructions,
    life,
    mesh,
    messaging,
    peers,
    remote,
    remote_large,
    savina,
    supervision,
    timing,
    typed,
    values,
)
from rabble.bench.alone import alone
from rabble.bench.model import (
    Case,
    Instructions,
    Limit,
    Miscount,
    Sample,
    Target,
    expect,
    measure,
)
from rabble.messages import Down

#: Seconds.
PATIENCE_S = 60.0
HAS_MSGSPEC = typed.has_msgspec()
HAS_ZMQ = importlib.util.find_spec("zmq") is not None and HAS_MSGSPEC

HAS_HTTP = importlib.util.find_spec("fastapi") is not None and (
    importlib.util.find_spec("uvicorn") is not None
    or importlib.util.find_spec("granian") is not None
)

#: Each workload with parameters that take no time, and what its cases have to count.
TINY: list[tuple[Callable[..., list[Case]], dict[str, Any], list[int]]] = [
    (messaging.pingpong, {"turns": 50}, [100]),
    (messaging.ring, {"processes": 7, "hops": 100}, [100]),
    (messaging.count, {"increments": 105, "batch": 10}, [105]),
    (messaging.inject, {"messages": 105, "burst": 10}, [105]),
    (messaging.big, {"processes": 5, "pings": 20}, [200]),
    (savina.banking, {"transactions": 200, "accounts": 10}, [200]),
    (savina.chameneos, {"meetings": 90, "creatures": 6}, [90]),
    (savina.concdict, {"requests": 20, "workers": 3, "keys": 50}, [60]),
    (savina.barber, {"haircuts": 40, "chairs": 5}, [40]),
    (creation.skynet, {"leaves": 100}, [111]),
    (creation.spawn, {"processes": 100, "weighed": 50}, [100, 50]),
    (life.life, {"lives": 150, "processes": 60}, [150, 60, 60, 60]),
    (timing.timers, {"outstanding": 100, "chains": 2, "per_chain": 3, "beats": 3}, [150, 6, 3]),
    (timing.wake, {"messages": 5, "idle_messages": 2, "idle_s": 0.01}, [5, 2, 0]),
    (codec.codec, {"envelopes": 70}, [70] * (15 if HAS_MSGSPEC else 11)),
    (values.values, {"envelopes": 70}, [70] * 5),
    (calls.calls, {"round_trips": 32, "awaited": 1_000}, [32, 32, 32, 1_000, 1_000, 32, 32]),
    (remote.remote, {"messages": 1_000}, [8_192] * (2 + HAS_ZMQ)),
    (remote.remote_typed, {"messages": 1_000}, [8_192] * 3),
    (remote_large.remote_large, {"megabytes": 1}, [1 << 20, 8 << 20, 1 << 20, 1]),
    (remote.rtt, {"rounds": 20}, [20, 20, 20]),
    (mesh.mesh, {"messages": 100}, [2_000]),
    (supervision.supervision, {"children": 40}, [40, 4, 40]),
    (groups.groups, {"members": 10, "rounds": 8, "changes": 20}, [80, 40, 4]),
    (api.api, {"requests": 2_000, "http_requests": 160}, [2_000, 512, *[160] * HAS_HTTP]),
    (forming.forming, {"sizes": (3,), "settle_s": 0.1, "idle_s": 0.1}, [3, 3, 0]),
    (gate.gate, {**gate.QUICK, "usual_s": 0.1, "overload_s": 0.3, "settle_s": 0.1}, [1] * 3),
]

RESULT_KEYS = {
    "name",
    "params",
    "messages",
    "seconds",
    "rate",
    "unit",
    "limit_name",
    "limit_rate",
    "ratio",
    "runs",
}


@pytest.mark.parametrize(
    ("make", "params", "counts"), TINY, ids=[make.__name__ for make, *_ in TINY]
)
def test_a_workload_delivers_what_it_should(
    make: Callable[..., list[Case]], params: dict[str, Any], counts: list[int]
) -> None:
    cases = make(**params)
    assert len(cases) == len(counts)
    for case, count in zip(cases, counts, strict=True):
        with case.session or contextlib.nullcontext():
            # Twice: a session serves all runs of its case.
            for _ in range(2):
                sample = case.run()
                assert sample.messages == count, case.name
                assert sample.seconds > 0
                if callable(case.limit.sample):
                    limit = case.limit.sample()
                    # With a session they are of another size, where only the rate counts.
                    # A table's rate is held against that of a part of it.
                    part = case.name == "life-table"
                    assert limit.messages == count or case.session or part, case.limit.name
                    assert limit.rate > 0
                for beside in case.beside.values():
                    assert beside().messages == count, case.name


def test_every_workload_is_tried_above() -> None:
    assert {make for make, *_ in TINY} == {workload.make for workload in WORKLOADS.values()}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_quick_parameters_are_those_of_the_workload(name: str) -> None:
    assert WORKLOADS[name].cases(quick=True)


@pytest.mark.parametrize("kind", ["rabble", "bare"])
def test_the_footprint_is_printed_for_each_process(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    footprint.main(kind, "20_000")
    # Memory that was free already may serve; in an interpreter of its own there is little.
    assert -200 < float(capsys.readouterr().out) < 2_000


def test_a_crowd_comes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    crowd.main("3_000")
    seen = crowd.Crowd(**json.loads(capsys.readouterr().out))
    assert seen.processes == 3_000
    assert 0 < seen.first_s < seen.all_s
    assert 0 < seen.last_s < seen.all_s
    assert seen.gone_s > 0
    assert seen.spawning_pause_ms > -1
    assert seen.stopping_pause_ms > -1


def test_cases_share_what_was_seen_of_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def fake(processes: int) -> crowd.Crowd:
        made.append(processes)
        return crowd.Crowd(processes, len(made), 6.0, 2.0, 1.0, 3.0, 4.0, 1_000, 100)

    monkeypatch.setattr(life, "crowd", fake)
    _, table, pause, memory = life.life(processes=60)
    assert callable(table.limit.sample)
    samples = [table.limit.sample(), table.run(), table.run(), pause.run(), memory.run()]
    assert made == [60, 60]
    assert [sample.rate for sample in samples] == pytest.approx([10, 10, 10, 4, 10])
    assert samples[1].details == pytest.approx({"last_sixth_per_s": 5})


def test_an_account_puts_aside_what_comes_while_it_waits() -> None:
    here = messaging.HERE
    teller, own, other = (Pid(name, here) for name in ("teller", "own", "other"))
    account = savina.Account()
    account.attach(messaging.ByHand(own))
    (debit,) = savina_sent(account.receive((5, other), teller, None))
    assert (debit.to, debit.msg, account.balance) == (other, 5, savina.BALANCE - 5)
    assert account.receive((7, other), teller, None) is None
    assert account.receive(9, other, None) is None
    assert account.balance == savina.BALANCE - 5
    answer, again = savina_sent(account.receive("reply", other, None))
    assert (answer.to, answer.msg) == (teller, "reply")
    assert (again.to, again.msg, again.sender) == (own, (7, other), teller)


def savina_sent(out: Any) -> list[Envelope]:
    return [out] if isinstance(out, Envelope) else list(out)


def test_money_that_vanishes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thief(savina.Account):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
            if type(msg) is int and msg:
                self.balance -= 1
            return super().receive(msg, sender, correlation_id)

    monkeypatch.setattr(savina, "Account", Thief)
    (case,) = savina.banking(transactions=100, accounts=10)
    assert callable(case.limit.sample)
    for run in (case.run, case.limit.sample):
        with pytest.raises(Miscount, match=r"banking.*, the balance: .* and not 10,000,000"):
            run()


def test_the_colours_of_two_that_meet() -> None:
    colours = range(savina.COLOURS)
    for one in colours:
        assert savina.complement(one, one) == one
        for other in colours:
            both = savina.complement(one, other)
            assert both == savina.complement(other, one)
            assert one == other or both not in (one, other)
        assert savina.complement(one, savina.FADED) == savina.FADED


def test_customers_of_the_barber_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    turned_away = 0

    class Customer(savina.Customer):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
            nonlocal turned_away
            turned_away += msg == "full"
            return super().receive(msg, sender, correlation_id)

    monkeypatch.setattr(savina, "Customer", Customer)
    (case,) = savina.barber(haircuts=40, chairs=2)
    assert case.run().messages == 40
    assert turned_away > 10


def test_the_phases_of_a_tree_share_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def fake(make: Any, children: int) -> dict[str, Sample]:
        made.append(children)
        return {phase: Sample(len(made), 1.0) for phase in supervision.PHASES}

    monkeypatch.setattr(supervision, "tree", fake)
    start, crash, end = supervision.supervision(children=60)
    rates = [case.run().rate for case in (start, start, crash, end, end, end)]
    assert rates == [1, 2, 1, 1, 2, 3]
    assert made == [60, 60, 60]


def test_a_tree_that_loses_a_child_is_refused() -> None:
    class Forgetful(supervision.Keeper):
        def receive(self, msg: Any, sender: Any, correlation_id: Any) -> Any:
            if isinstance(msg, Down) and not self.ends:
                name = msg.pid.name
                # Another one in its place, beside which it is missed.
                return [*self.begin(name), *self.begin(f"{name}-more")]
            return super().receive(msg, sender, correlation_id)

    with pytest.raises(Miscount, match="the tree: 2[34] were delivered and not 22"):
        supervision.tree(Forgetful, 20)


def test_what_fails_in_an_interpreter_of_its_own_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"footprint failed:[\s\S]*KeyError: 'other'"):
        creation.footprint("other", 1)


@pytest.mark.parametrize("make", [codec.codec, values.values])
def test_without_msgspec_msgpack_is_the_limit(
    make: Callable[..., list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "msgspec" else find(name)
    )
    cases = [case for case in make(envelopes=3) if not case.name.endswith("-dict")]
    assert {case.limit.name for case in cases} == {"msgpack of the payload"}
    assert not any("struct" in case.name for case in cases)
    for case in cases:
        assert callable(case.limit.sample)
        assert case.limit.sample().messages == 3


def test_a_payload_that_comes_back_different_is_refused() -> None:
    rival = (lambda value: b"", lambda data: "another", ["one"])
    with pytest.raises(ValueError, match="'one' came back as 'another'"):
        codec.rival_run("broken", rival, 1)()


def test_skynet_wants_a_power_of_ten() -> None:
    with pytest.raises(ValueError, match="power of ten, not 30"):
        creation.skynet(leaves=30)


def test_a_wrong_count_is_refused() -> None:
    with pytest.raises(Miscount, match="ring: 1 were delivered and not 2"):
        expect("ring", 1, 2)


def test_a_case_and_its_limit_take_turns() -> None:
    order: list[str] = []

    def sample(who: str, rate: float) -> Callable[[], Sample]:
        def take() -> Sample:
            order.append(who)
            return Sample(10, 10 / rate, details={"p99": rate})

        return take

    case = Case("pair", {}, "x/s", sample("case", 8.0), Limit("l", sample("limit", 4.0)), Target(3))
    result = measure(case, peers={"peer": sample("peer", 2.0)})
    assert len(result.runs) == 5
    pairs = [order[n : n + 3] for n in range(0, len(order), 3)]
    assert len(pairs) == 6
    assert all(sorted(pair) == ["case", "limit", "peer"] and pair[2] == "peer" for pair in pairs)
    assert {pair[0] for pair in pairs} == {"case", "limit"}
    assert result.ratio == pytest.approx(2.0)
    assert result.reached is False
    assert result.details == pytest.approx({"p99": 8.0})
    assert result.peers == pytest.approx({"peer": 2.0})


def test_what_is_told_says_which_run_of_how_many() -> None:
    case = Case("ring", {}, "x/s", lambda: Sample(1, 1.0), Limit("l", 1.0))
    quick: list[str] = []
    measure(case, peers={"peer": lambda: Sample(1, 1.0)}, progress=quick.append)
    assert quick[:2] == ["ring: warm-up", "ring: warm-up, peer"]
    assert quick[-2:] == ["ring: run 5 of 5", "ring: run 5 of 5, peer"]
    spread: list[str] = []
    measure(case, spread_s=0.001, progress=spread.append)
    assert "ring: run 1 of 5 to 25" in spread


@pytest.mark.parametrize(
    ("takes_s", "spread_s", "pairs"), [(1.0, 0.0, 5), (1.0, 5.0, 5), (1.0, 9.5, 10), (0.1, 9.5, 25)]
)
def test_quick_pairs_are_spread_over_some_seconds(
    takes_s: float, spread_s: float, pairs: int
) -> None:
    now = 0.0

    def take() -> Sample:
        nonlocal now
        now += takes_s
        return Sample(1, 1.0)

    case = Case("quick", {}, "x/s", take, Limit("l", 1.0))
    result = measure(case, spread_s=spread_s, clock=lambda: now)
    assert len(result.runs) == pairs


@pytest.mark.parametrize(
    ("target", "ratio", "reached"),
    [(Target(1.0), 1.0, True), (Target(1.0), 0.99, False), (Target(0.3, "<="), 0.2, True)],
)
def test_a_target_is_a_lower_or_an_upper_bound(target: Target, ratio: float, reached: bool) -> None:
    assert target.reached(ratio) is reached


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command knows two workloads, of no size."""
    workloads = {
        "pingpong": Workload("pingpong", messaging.pingpong, {"turns": 20}),
        "codec": Workload("codec", codec.codec, {"envelopes": 5}),
    }
    monkeypatch.setattr(rabble.bench, "WORKLOADS", workloads)


@pytest.mark.usefixtures("tiny")
def test_the_json_file_has_the_documented_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    assert cli.main(["bench", "--quick", "--json", str(file)]) == 0
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["machine"]["processors"] >= 1
    assert written["machine"]["versions"]["python"]
    names = [result["name"] for result in written["results"]]
    assert names[:4] == ["pingpong", "codec-small", "codec-pairs", "codec-1KiB"]
    for result in written["results"]:
        assert result.keys() >= RESULT_KEYS
        assert len(result["runs"]) >= 5
        assert result["rate_min"] <= result["rate"] <= result["rate_max"]
        assert all(run["limit_rate"] > 0 for run in result["runs"])
    assert written["results"][0]["messages"] == 40
    assert written["results"][0]["params"] == {"turns": 20}
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(name in printed.out for name in names)


@pytest.mark.usefixtures("tiny")
def test_only_the_named_workloads_run_and_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "pingpong", "pingpong", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("pingpong") == 1
    assert "codec" not in printed


@pytest.mark.usefixtures("tiny")
def test_peers_add_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PYTHON_PEERS", peers.PYTHON_PEERS[:1])
    monkeypatch.setattr(erlang, "found", lambda: False)
    file = tmp_path / "results.json"
    assert cli.main(["bench", "pingpong", "--quick", "--peers", "--json", str(file)]) == 0
    assert "asyncio.Queue" in capsys.readouterr().out
    (result,) = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert result["peers"].keys() == {"asyncio.Queue"}


@pytest.mark.parametrize("name", ["pingpong", "ring", "count"])
def test_asyncio_queues_deliver_as_many(name: str) -> None:
    params = {"turns": 20, "processes": 5, "hops": 20, "increments": 25, "batch": 10}
    workload = dict(peers.PYTHON_PEERS[0][2])[name]
    assert workload(params).messages == {"pingpong": 40, "ring": 20, "count": 25}[name]


@pytest.mark.parametrize(
    ("peer", "module", "workloads"),
    peers.PYTHON_PEERS[1:],
    ids=[peer for peer, *_ in peers.PYTHON_PEERS[1:]],
)
def test_installed_peers_deliver_as_many(
    peer: str, module: str, workloads: dict[str, peers.Workload]
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    assert workloads["pingpong"]({"turns": 20}).messages == 40


@pytest.mark.skipif(not erlang.found(), reason="erl and erlc are not on the PATH")
@pytest.mark.parametrize(
    ("name", "params", "messages"),
    [
        ("pingpong", {"turns": 50}, 100),
        ("ring", {"processes": 7, "hops": 100}, 100),
        ("count", {"increments": 105, "batch": 10}, 105),
        ("spawn", {"processes": 100}, 100),
        ("api", {"requests": 320, "connections": 4, "pipelined": 16}, 320),
    ],
)
def test_erlang_delivers_as_many(name: str, params: dict[str, int], messages: int) -> None:
    with peers.Peers() as others:
        assert others.erlang is not None
        assert "OTP" in others.versions()["erlang"]
        assert others.erlang.run(name, params).messages == messages


def test_a_failing_benchmark_ends_with_1_and_the_others_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[Case]:
        def run() -> Sample:
            raise Miscount("broken: 0 were delivered and not 1")

        return [Case("broken", {}, "messages/s", run, Limit("none", 1.0))]

    workloads = {
        "broken": Workload("broken", broken, {}),
        "pingpong": Workload("pingpong", messaging.pingpong, {"turns": 20}),
    }
    monkeypatch.setattr(rabble.bench, "WORKLOADS", workloads)
    assert cli.main(["bench", "--quick"]) == 1
    printed = capsys.readouterr()
    assert "broken failed: Miscount: broken: 0 were delivered and not 1" in printed.err
    assert "pingpong" in printed.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pingpnog"], "no workload 'pingpnog'. Did you mean pingpong? There are: pingpong, ring"),
        (["--plot", "figure.pdf"], "the name must end in .svg or .png"),
        (["--json", "no-such-folder/results.json"], "there is no folder for that file"),
    ],
)
def test_arguments_that_cannot_be_used(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "--plot", "figure.svg"]) == 2
    assert "rabble[plot]" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["figure.svg", "figure.png"])
def test_a_plot_is_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / name
    assert cli.main(["bench", "--quick", "--plot", str(file)]) == 0
    assert file.stat().st_size > 1_000


def test_an_interrupt_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> list[Case]:
        raise KeyboardInterrupt

    monkeypatch.setattr(rabble.bench, "WORKLOADS", {"x": Workload("x", interrupted, {})})
    assert cli.main(["bench"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"rabble {rabble.__version__} (Python 3.")


def test_the_help_names_every_workload() -> None:
    assert cli.bench.WORKLOAD_NAMES == ", ".join(WORKLOADS)


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "bench" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_the_command_counts_instructions_where_it_is_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(workload: str, progress: Callable[[str], None]) -> dict[str, Instructions]:
        if workload == "codec":
            raise RuntimeError("codec failed under valgrind")
        return {"pingpong": Instructions(1_000, 1_100)}

    monkeypatch.setattr(instructions, "found", lambda: True)
    monkeypatch.setattr(instructions, "count", count)
    file = tmp_path / "results.json"
    assert cli.main(["bench", "--quick", "--instructions", "--json", str(file)]) == 1
    written = json.loads(file.read_text(encoding="utf-8"))["results"]
    expected = {"rabble": 1_000, "limit": 1_100, "ratio": pytest.approx(1.1)}
    assert written[0]["instructions"] == expected
    assert written[1]["instructions"] is None
    said = "counting the instructions of codec failed: RuntimeError: codec failed under valgrind"
    assert said in capsys.readouterr().err


def test_instructions_without_valgrind_are_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instructions, "found", lambda: False)
    assert cli.main(["bench", "--instructions"]) == 2
    assert "--instructions needs valgrind" in capsys.readouterr().err


def test_a_mesh_forms_without_a_failure() -> None:
    printed = alone(forming_side.__name__, 6, 0.1, 0.1, patience_s=PATIENCE_S)
    formed = forming_side.Formed(**json.loads(printed))
    assert (formed.nodes, formed.failed, formed.downs) == (6, 0, 0)
    assert formed.formed_s > 0 and formed.processor_s > 0 and formed.sent_bytes > 0


def test_a_side_that_fails_ends_the_mesh() -> None:
    with pytest.raises(RuntimeError, match="forming_side failed"):
        alone(forming_side.__name__, 2, 0.1, -1.0, patience_s=PATIENCE_S)
