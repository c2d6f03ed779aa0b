"""What a node brings to its handshakes."""

from __future__ import annotations

from rabble._core.ids import NodeId
from rabble.cluster.config import Credentials, Mesh
from rabble.cluster.handshake_configs import HandshakeConfigs
from rabble.limits import Limits

KEYS = (bytes(32), bytes([1]) * 32)


class Node:
    """One whose clock, incarnation and belief a test sets."""

    def __init__(self, *keys: bytes) -> None:
        self.now = 100.0
        self.incarnation = 7
        self.highest_believed = 1_000
        self.credentials = Credentials(keys)
        self.configs = HandshakeConfigs(
            NodeId("a", "a:1"),
            Mesh(key=keys[0] if keys else None, cluster="shop", authenticate_loopback=bool(keys)),
            Limits(handshake_ms=3_000, message_bytes_max=12_345),
            lambda: self.now,
            credentials=lambda: self.credentials,
            incarnation=lambda: self.incarnation,
            highest_believed=lambda: self.highest_believed,
        )


def test_a_config_has_what_the_node_is_set_up_with() -> None:
    config = Node(*KEYS).configs.current()
    assert (config.own, config.cluster) == (NodeId("a", "a:1"), "shop")
    assert (config.key, config.other_keys) == (KEYS[0], (KEYS[1],))
    assert not config.secured and config.authenticate_loopback
    assert (config.deadline_s, config.message_bytes_max) == (3.0, 12_345)


def test_without_a_key_the_stream_is_secured() -> None:
    config = Node().configs.current()
    assert (config.key, config.other_keys, config.secured) == (None, (), True)


def test_a_config_is_made_anew_for_another_incarnation_and_as_the_clock_goes_on() -> None:
    node = Node(KEYS[0])
    first = node.configs.current()
    assert (first.incarnation, first.highest_believed) == (7, 1_000)
    node.highest_believed = 2_000
    node.now += 0.5
    assert node.configs.current() is first
    node.now += 0.5
    second = node.configs.current()
    assert (second.incarnation, second.highest_believed) == (7, 2_000)
    node.incarnation = 8
    assert node.configs.current().incarnation == 8
    node.credentials = Credentials((KEYS[1],))
    assert node.configs.current().key == KEYS[1]
