"""The command, and that every workload delivers what it counts. No figure is judged here."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rabble.bench
from rabble import cli
from rabble.bench import (
    WORKLOADS,
    Workload,
    codec,
    creation,
    erlang,
    footprint,
    mesh,
    messaging,
    peers,
    remote,
    remote_large,
    timing,
)
from rabble.bench.model import Case, Limit, Miscount, Result, Sample, Target, expect, measure
from rabble.bench.report import Progress, figure, print_plain, print_table, rows

HAS_ZMQ = importlib.util.find_spec("zmq") is not None

#: Each workload with parameters that take no time, and what its cases have to count.
TINY: list[tuple[Callable[..., list[Case]], dict[str, Any], list[int]]] = [
    (messaging.pingpong, {"turns": 50}, [100]),
    (messaging.ring, {"processes": 7, "hops": 100}, [100]),
    (messaging.count, {"increments": 105, "batch": 10}, [105]),
    (messaging.inject, {"messages": 105, "burst": 10}, [105]),
    (messaging.big, {"processes": 5, "pings": 20}, [200]),
    (creation.skynet, {"leaves": 100}, [111]),
    (creation.spawn, {"processes": 100}, [100, 100]),
    (timing.timers, {"outstanding": 100, "chains": 2, "per_chain": 3}, [150, 6]),
    (timing.wake, {"messages": 5, "idle_messages": 2, "idle_s": 0.01}, [5, 2, 0]),
    (codec.codec, {"envelopes": 10}, [10, 10, 10, 10]),
    (remote.remote, {"messages": 1_000}, [8_192] * (1 + HAS_ZMQ)),
    (remote.remote_typed, {"messages": 1_000}, [8_192]),
    (remote_large.remote_large, {"megabytes": 1}, [1 << 20, 8 << 20, 1]),
    (remote.rtt, {"rounds": 20}, [20, 20, 20]),
    (mesh.mesh, {"messages": 100}, [2_000]),
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
                    assert limit.messages == count or case.session, case.limit.name
                    assert limit.rate > 0


def test_every_workload_is_tried_above() -> None:
    assert {make for make, *_ in TINY} == {workload.make for workload in WORKLOADS.values()}


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_quick_parameters_are_those_of_the_workload(name: str) -> None:
    assert WORKLOADS[name].cases(quick=True)


@pytest.mark.parametrize("kind", ["rabble", "bare"])
def test_the_footprint_is_printed_for_each_process(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    footprint.main(kind, 20_000)
    # Memory that was free already may serve; in an interpreter of its own there is little.
    assert -200 < float(capsys.readouterr().out) < 2_000


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


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.058, "0.058"), (12.34, "12.3"), (1234.0, "1.23 k"), (9.87e6, "9.87 M"), (2e9, "2 G")],
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert figure(value) == shown


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
    assert names == ["pingpong", "codec-small", "codec-pairs", "codec-typed", "codec-1KiB"]
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


def test_a_missed_target_is_marked_and_is_no_failure() -> None:
    case = Case("slow", {}, "x/s", lambda: Sample(1, 1.0), Limit("fixed", 2.0), Target(1.0))
    stream = io.StringIO()
    print_table([measure(case)], stream)
    line = next(line for line in stream.getvalue().splitlines() if line.startswith("slow"))
    assert line.split()[-1] == "NO"


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


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def a_result() -> Result:
    """A result to be shown."""
    case = Case("shown", {}, "x/s", lambda: Sample(3, 1.0), Limit("fixed", 2.0), Target(1.0))
    return measure(case)


def test_progress_is_for_terminals_alone() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        progress = Progress(stream)
        progress("ring run 1 of 5")
        progress.clear()
    assert "ring run 1 of 5" in terminal.getvalue()
    assert file.getvalue() == ""


def test_a_terminal_without_rich_gets_the_plain_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    terminal, plain = Terminal(), io.StringIO()
    print_table([a_result()], terminal)
    print_plain(*rows([a_result()]), plain)
    assert terminal.getvalue() == plain.getvalue()


def test_a_terminal_with_rich_gets_a_drawn_table() -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    print_table([a_result()], terminal)
    assert "shown" in terminal.getvalue()
    assert "yes" in terminal.getvalue()
