"""Names are values: checked where they enter, ordered, hashed, copied, pickled, parsed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rabble import CorrelationId, NodeId, Pid
from rabble._core.ids import host_problem

NODE = NodeId("n1", "127.0.0.1:5001")

names = st.from_regex(r"[a-zA-Z0-9_.äöü -]{1,20}", fullmatch=True).filter(
    lambda name: name == name.strip()
)
nodes = st.builds(NodeId, names, st.sampled_from(["127.0.0.1:1", "h:65535", "[::1]:80"]))
pids = st.builds(Pid, names, nodes, st.none() | names)
numbers = st.none() | st.integers(0, 2**63 - 1)
correlation_ids = st.builds(CorrelationId, pids, numbers, numbers)


@given(pids)
def test_the_text_form_of_a_pid_reads_back(pid: Pid) -> None:
    assert Pid.parse(str(pid)) == pid
    assert NodeId.parse(str(pid.node)) == pid.node


@given(st.one_of(nodes, pids, correlation_ids))
def test_a_value_survives_copy_and_pickle(value: object) -> None:
    assert copy.copy(value) == value
    assert copy.deepcopy(value) == value
    loaded = pickle.loads(pickle.dumps(value))
    assert loaded == value
    assert hash(loaded) == hash(value)


@given(st.one_of(nodes, pids, correlation_ids))
def test_the_repr_of_a_value_is_its_source(value: object) -> None:
    namespace = {"NodeId": NodeId, "Pid": Pid, "CorrelationId": CorrelationId}
    assert eval(repr(value), namespace) == value


@given(st.lists(pids, min_size=2, max_size=6))
def test_pids_are_totally_ordered_by_node_group_and_name(some: list[Pid]) -> None:
    def key(pid: Pid) -> tuple[str, str, bool, str, str]:
        node = pid.node
        return (node.name, node.addr, pid.group is not None, pid.group or "", pid.name)

    assert sorted(some) == sorted(some, key=key)
    a, b = some[:2]
    assert (a == b) == (key(a) == key(b))
    assert (a != b) == (key(a) != key(b))
    assert (a <= b) == (key(a) <= key(b))
    assert (a > b) == (key(a) > key(b))
    assert (a >= b) == (key(a) >= key(b))


@given(correlation_ids, correlation_ids)
def test_correlation_ids_are_ordered_and_equal_by_value(a: CorrelationId, b: CorrelationId) -> None:
    assert (a < b) + (a == b) + (a > b) == 1
    assert (a == b) <= (hash(a) == hash(b))


def test_the_next_request_counts_up_from_nothing() -> None:
    first = CorrelationId(Pid("p", NODE), connection=7)
    assert first.request is None
    assert first.next_request().request == 0
    assert first.next_request().next_request() == CorrelationId(Pid("p", NODE), 7, 1)


def test_values_take_part_in_pattern_matching() -> None:
    match CorrelationId(Pid("p", NODE, "g"), 1, 2):
        case CorrelationId(Pid(name, NodeId(node_name, addr), group), connection, request):
            assert (name, node_name, addr, group) == ("p", "n1", "127.0.0.1:5001", "g")
            assert (connection, request) == (1, 2)
        case _:
            pytest.fail("no match")


@pytest.mark.parametrize("value", [NODE, Pid("p", NODE), CorrelationId(Pid("p", NODE))])
def test_values_cannot_be_changed(value: object) -> None:
    for name in type(value).__match_args__:  # type: ignore[attr-defined]
        with pytest.raises(AttributeError):
            setattr(value, name, getattr(value, name))
    with pytest.raises(TypeError):
        type("Sub", (type(value),), {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "it is empty"),
        ("x" * 256, "256 bytes"),
        ("ä" * 128, "256 bytes"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("\x1b[31m", "control characters"),
        ("a\u2028b", "control characters"),
        ("a::b", "'::'"),
        (":a", "':' at an end"),
        ("a:", "':' at an end"),
        ("a@@b", "'@'"),
        ("\ud800", "lone surrogates"),
        ("a\u0308", "normal form C"),
        (" a", "begins or ends with a space"),
        ("a ", "begins or ends with a space"),
        (" ", "begins or ends with a space"),
        ("\u00a0a", "U+00A0, a space other"),
        ("a\u3000b", "U+3000, a space other"),
        ("a\u2009b", "U+2009, a space other"),
        *(
            (f"a{chr(c)}b", f"U+{c:04X}, which is not shown")
            for c in (
                *(0x00AD, 0x034F, 0x061C, 0x115F, 0x180E, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F),
                *(0x202A, 0x202E, 0x2060, 0x2066, 0x2069, 0x2800, 0x3164, 0xFE0F, 0xFEFF, 0xFFA0),
                *(0xE0001, 0xE0061, 0xE0100),
            )
        ),
        ("\u0430dmin", "CYRILLIC and LATIN"),
        ("adm\u0456n", "CYRILLIC and LATIN"),
        ("\u03bfk", "GREEK and LATIN"),
        ("\u03bf\u0430", "CYRILLIC and GREEK"),
        ("\u0561a", "ARMENIAN and LATIN"),
        ("日本\u0430", "CJK and CYRILLIC"),
        ("\u05d0b", "HEBREW and LATIN"),
        ("\ufb01le", "U+FB01, which looks like 'fi'"),
        ("\uff41", "U+FF41, which looks like 'a'"),
        ("\U0001d41aa", "U+1D41A, which looks like 'a'"),
        ("n\U0001d7cf", "U+1D7CF, which looks like '1'"),
        ("\u00b5", "U+00B5, which looks like '\\u03bc'"),
        ("\u2139", "U+2139, which looks like 'i'"),
    ],
)
def test_an_unusable_name_says_what_is_wrong_and_is_printed_escaped(name: str, said: str) -> None:
    for make in (
        lambda: Pid(name, NODE),
        lambda: NodeId(name, "h:1"),
        lambda: Pid("p", NODE, name),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert said in str(caught.value)
        assert str(caught.value).isascii()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "x" * 255,
            "ä" * 127,
            "a:b",
            "with space",
            "日本語",
            "東京-till-1",
            "カタカナ",
            "ラーメンABC",
        ),
        *(
            "한국어",
            "имя-1",
            "όνομα 2",
            "שם",
            "اسم",
            "กำไร",
            "և",
            "नमस्ते",
            "m²",
            "\U0001f680",
            "a…b",
        ),
        *("α→β", "½", "ß", "İstanbul", "№7"),
    ],
)
def test_a_usable_name_is_taken(name: str) -> None:
    assert Pid(name, NODE).name == name


@pytest.mark.parametrize(
    ("addr", "said"),
    [
        ("", "host:port"),
        ("host", "host:port"),
        (":80", "host:port"),
        ("host:", "0 to 65535"),
        ("host:65536", "0 to 65535"),
        ("host:-1", "0 to 65535"),
        ("host:８０", "printable ASCII"),
        ("::1:80", "[::1]:port"),
        ("ho st:80", "a space"),
        ("a@b:80", "'@'"),
        ("h" * 300 + ":1", "255"),
        ("db..internal:80", "a dot in front, or two in a row"),
        ("10.0.0..2:80", "a dot in front, or two in a row"),
        (".shop:80", "a dot in front, or two in a row"),
        (".:80", "a dot in front, or two in a row"),
        ("x" * 64 + ":80", "63 characters between two dots"),
        ("a." + "x" * 64 + ".b:80", "63 characters between two dots"),
        ("[]:80", "no IPv6 address"),
        ("[h]:80", "no IPv6 address"),
        ("[::1:80", "[::1]:port"),
        ("[h:80", "no IPv6 address"),
        ("[::g]:80", "no IPv6 address"),
        ("h\ud800:80", "printable ASCII"),
    ],
)
def test_an_unusable_address_says_what_is_wrong(addr: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        NodeId("n", addr)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "host", ["h", "h.", "a.b.c", "x" * 63, "x" * 63 + ".y", "10.0.0.1", "[::1]", "[fe80::1%eth0]"]
)
def test_a_usable_host_is_taken(host: str) -> None:
    assert NodeId("n", f"{host}:80").addr == f"{host}:80"
    assert host_problem(host) is None


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=80))
@example("].")
def test_no_host_of_a_node_makes_the_resolver_raise_but_oserror(host: str) -> None:
    """What `getaddrinfo` does before it asks anybody is to encode the host as IDNA."""
    try:
        node = NodeId("n", f"{host}:1")
    except ValueError:
        return
    inside = node.addr.rpartition(":")[0].strip("[]")
    inside.encode("idna")


@pytest.mark.parametrize("text", ["", "p", "p::n", "p@h:1", "a::b::c::n@h:1", "p::n@h", "::@h:1"])
def test_what_is_no_pid_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Pid.parse(text)


@pytest.mark.parametrize("value", [None, 1, b"p"])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        Pid(value, NODE)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Pid.parse(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        NodeId.parse(value)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        NodeId("n", value)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, 2**63])
def test_a_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="0 to 2"):
        CorrelationId(Pid("p", NODE), request=number)
    with pytest.raises(TypeError):
        CorrelationId(Pid("p", NODE), connection="1")  # type: ignore[arg-type]


def test_comparison_with_another_type_is_not_equality() -> None:
    for value in (NODE, Pid("p", NODE), CorrelationId(Pid("p", NODE))):
        assert value != "p"
        with pytest.raises(TypeError):
            value < "p"  # type: ignore[operator]  # noqa: B015


class Odd(str):
    """A str whose every method lies or raises."""

    def _raise(self, *args: object) -> Any:
        raise SystemExit("asked")

    __str__ = __repr__ = __hash__ = __eq__ = __len__ = __iter__ = __contains__ = _raise
    encode = partition = rpartition = startswith = isascii = split = _raise


class Nameless(type):
    __name__ = property(Odd._raise)  # type: ignore[assignment]


class Unsayable(metaclass=Nameless):
    __str__ = __repr__ = Odd._raise  # type: ignore[assignment]
    __class__ = str  # type: ignore[assignment]


def test_a_subclass_of_str_is_taken_for_its_text_and_none_of_its_methods_is_asked() -> None:
    made = Pid(Odd("p"), NodeId(Odd("n"), Odd("h:1")), Odd("g"))
    assert made == Pid("p", NodeId("n", "h:1"), "g")
    for text in (made.name, made.group, made.node.name, made.node.addr):
        assert type(text) is str
    assert Pid.parse(Odd("g::p::n@h:1")) == made
    assert NodeId.parse(Odd("n@h:1")) == made.node
    for wrong in (Odd(""), Odd("a@b"), Odd("\ud800"), Odd("x" * 300)):
        with pytest.raises(ValueError, match="is not usable"):
            Pid(wrong, NODE)


def test_what_is_no_name_is_refused_without_a_word_from_it_that_is_not_bounded() -> None:
    class Wordy:
        def __repr__(self) -> str:
            return "x" * 1_000_000

    wrong: Any
    for wrong in (Unsayable(), Wordy(), "x" * 1_000_000, 10**5000, -(10**5000)):
        for make in (
            lambda: Pid(wrong, NODE),  # noqa: B023
            lambda: Pid("p", NODE, wrong),  # noqa: B023
            lambda: NodeId(wrong, "h:1"),  # noqa: B023
            lambda: NodeId("n", wrong),  # noqa: B023
            lambda: Pid.parse(wrong),  # noqa: B023
            lambda: NodeId.parse(wrong),  # noqa: B023
            lambda: CorrelationId(Pid("p", NODE), wrong),  # noqa: B023
            lambda: CorrelationId(Pid("p", NODE), 1, wrong),  # noqa: B023
        ):
            with pytest.raises((TypeError, ValueError)) as caught:
                make()
            assert len(str(caught.value)) < 400


def test_there_is_no_request_after_the_last_one() -> None:
    last = CorrelationId(Pid("p", NODE), 1, 2**63 - 1)
    with pytest.raises(ValueError, match=r"request must be 0 to 2\*\*63 - 1"):
        last.next_request()


@pytest.mark.parametrize("cls", [NodeId, Pid, CorrelationId])
def test_a_value_without_its_parts_cannot_be_made(cls: Any) -> None:
    for make in (cls, lambda: cls.__new__(cls), lambda: cls(None), lambda: object.__new__(cls)):
        with pytest.raises(TypeError):
            make()


def test_a_method_asks_whose_it_is() -> None:
    for method in (Pid.__reduce__, NodeId.__copy__, CorrelationId.next_request):
        for other in (None, 5, NODE if method is not NodeId.__copy__ else "n"):
            with pytest.raises(TypeError, match="doesn't apply to"):
                method(other)  # type: ignore[arg-type]
