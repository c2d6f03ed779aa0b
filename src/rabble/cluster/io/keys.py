"""The key that the nodes of a cluster share, or that one node alone has, and its file.

A key file is text: the 32 bytes as 64 hexadecimal digits, and a newline. Text survives what people
do with keys (paste it, keep it in a secret store, read it out), and raw bytes do not. While the key
is changed the file holds two, each on a line of its own.

The file of a node key begins with a line that says so, one with the name, and one with the key's
id. The numbers of its polynomial follow, a line each, and the SHA-256 of all these lines: with a
number that was mistyped the node would be refused everywhere, and nothing would say why. (Of a
cluster's key that is told by `key_id`, which all nodes show.)
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from rabble._core.ids import NodeId
from rabble.cluster.decide.handshake_wire import KEY_BYTES
from rabble.cluster.decide.node_keys import COLLUDERS_MAX, KEY_ID_BYTES, NodeKey, derived
from rabble.errors import KeyFileError

__all__ = [
    "is_cluster_key_file",
    "is_node_key_file",
    "key_id",
    "new_key",
    "new_node_key",
    "read_key",
    "read_key_file",
    "read_keys",
    "read_private",
    "write_key",
    "write_node_key",
    "write_private",
]

#: The first line of a node key's file, and what the last one begins with.
NODE_KEY_HEAD = b"rabble node key 1"
CHECKSUM_HEAD = "sha256 "

#: While it is changed.
KEYS_MAX = 2
#: Of HMAC-SHA256, which makes other things of the same key with other labels.
ID_LABEL = b"rabble key id"
ID_BYTES = 4
#: More than a key file, or one of a private key in PEM, ever has.
FILE_BYTES_MAX = 65_536


def new_key(token_bytes: Callable[[int], bytes]) -> bytes:
    """A new key of 32 bytes.

    :param token_bytes: a cryptographic random source: `secrets.token_bytes`.
    """
    return token_bytes(KEY_BYTES)


def read_keys(path: str | os.PathLike[str]) -> tuple[bytes, ...]:
    """Read a key file of a cluster's key. For any thread.

    :returns: the 32 bytes of each key: the one that this node proves itself with, and perhaps
        another one that it accepts.
    :raises KeyFileError: if it cannot be read, others than its owner may do anything with it, its
        owner is neither this user nor root, or what it holds is no key. The message never shows its
        content.
    """
    keys = read_key_file(path)
    if isinstance(keys, NodeKey):
        raise KeyFileError(f"{path}: the key of one node, and not one of a cluster")
    return keys


def read_key_file(path: str | os.PathLike[str]) -> tuple[bytes, ...] | NodeKey:
    """Read a key file: that of a cluster's key, see `read_keys`, or that of one node.

    :raises KeyFileError: as `read_keys`.
    """
    # Text that came by way of Windows is the same text.
    content = read_private(path).replace(b"\r\n", b"\n")
    if content.startswith(NODE_KEY_HEAD + b"\n"):
        return parsed_node_key(content, path)
    keys = tuple(parsed(text, path) for text in content.split() or [b""])
    if len(keys) > KEYS_MAX:
        raise KeyFileError(
            f"{path}: {len(keys)} keys; at most {KEYS_MAX}, while one takes the place of the other"
        )
    if len(set(keys)) < len(keys):
        raise KeyFileError(f"{path}: the same key twice; leave one out, or write the new one first")
    return keys


def read_key(path: str | os.PathLike[str]) -> bytes:
    """The key of a file that a node proves itself with; see `read_keys`."""
    return read_keys(path)[0]


def key_id(key: bytes) -> str:
    """What tells a key from others, and tells nothing else of it: 8 hexadecimal digits."""
    return hmac.digest(key, ID_LABEL, "sha256")[:ID_BYTES].hex()


def parsed(text: bytes, path: str | os.PathLike[str]) -> bytes:
    """The key that a line of a key file holds."""
    try:
        key = bytes.fromhex(text.decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(text) != 2 * KEY_BYTES:
        raise KeyFileError(
            f"{path}: not a key, which is {2 * KEY_BYTES} hexadecimal digits and a newline; "
            f"`rabble keygen` makes one"
        )
    if not any(key):
        raise KeyFileError(f"{path}: the key is all zero; `rabble keygen` makes one")
    return key


def is_node_key_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is one of a node key. False if it cannot be read."""
    return beginning_of(path, len(NODE_KEY_HEAD)) == NODE_KEY_HEAD


def is_cluster_key_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file holds the key of a cluster, or two. False if it cannot be read."""
    texts = beginning_of(path, FILE_BYTES_MAX).split()
    try:
        return bool(texts) and all(parsed(text, path) for text in texts)
    except KeyFileError:
        return False


def beginning_of(path: str | os.PathLike[str], bytes_max: int) -> bytes:
    """The first bytes of a file, whoever may read it; none if it cannot be read."""
    try:
        # A named pipe would keep the reader waiting.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.read(file, bytes_max)
    except OSError:
        return b""
    finally:
        os.close(file)


def parsed_node_key(content: bytes, path: str | os.PathLike[str]) -> NodeKey:
    """The node key that a file holds."""
    try:
        _, name, key_id, *numbers, checksum = content.decode().rstrip("\n").split("\n")
        name, key_id = without_head(name, "name "), without_head(key_id, "id ")
        checksum = without_head(checksum, CHECKSUM_HEAD)
        if len(numbers) != COLLUDERS_MAX + 1 or any(len(each) != 2 * KEY_BYTES for each in numbers):
            raise ValueError
        NodeId(name, "localhost:0")
        coefficients = tuple(int.from_bytes(bytes.fromhex(number), "big") for number in numbers)
        text = node_key_text(name, bytes.fromhex(key_id), coefficients)
        if hashlib.sha256(text).digest() != bytes.fromhex(checksum):
            raise KeyFileError(
                f"{path}: its checksum does not fit: a digit is not what it was, or lines are not "
                f"where they were; copy it anew, or make another one with `rabble keygen --node "
                f"NAME --from FILE`"
            )
        return NodeKey(name, bytes.fromhex(key_id), coefficients)
    except KeyFileError:
        raise
    except ValueError:
        # Its text may have what the file holds.
        raise KeyFileError(
            f"{path}: not a whole node key, which has its name, its id, {COLLUDERS_MAX + 1} "
            f"numbers and their checksum, a line each; `rabble keygen --node NAME --from FILE` "
            f"makes one"
        ) from None


def without_head(line: str, head: str) -> str:
    """What follows the head of a line."""
    if not line.startswith(head):
        raise ValueError(f"a line does not begin with {head!r}")
    return line.removeprefix(head)


def node_key_text(name: str, key_id: bytes, coefficients: Iterable[int]) -> bytes:
    """The file of a node key, but for its last line."""
    numbers = (number.to_bytes(KEY_BYTES, "big").hex() for number in coefficients)
    lines = [NODE_KEY_HEAD.decode(), f"name {name}", f"id {key_id.hex()}", *numbers]
    return "".join(f"{line}\n" for line in lines).encode()


def new_node_key(authority: bytes, name: str, token_bytes: Callable[[int], bytes]) -> NodeKey:
    """A new key for the node of that name, which no other node has.

    :param authority: the 32 bytes that all node keys of the cluster are made of.
    :param token_bytes: a cryptographic random source: `secrets.token_bytes`.
    :raises ValueError: if no node can have that name.
    """
    NodeId(name, "localhost:0")
    return derived(authority, name, token_bytes(KEY_ID_BYTES))


def write_node_key(path: str | os.PathLike[str], key: NodeKey) -> None:
    """Write the file of a node key, that only this user may read. For any thread.

    :param path: of the file, which must not exist yet.
    :raises KeyFileError: if it exists or cannot be written.
    """
    text = node_key_text(key.name, key.key_id, key.coefficients)
    checksum = f"{CHECKSUM_HEAD}{hashlib.sha256(text).hexdigest()}\n"
    write_private(path, text + checksum.encode())


def write_key(path: str | os.PathLike[str], key: bytes) -> None:
    """Write a key file that only this user may read. For any thread.

    :param path: of the file, which must not exist yet.
    :param key: 32 bytes.
    :raises KeyFileError: if it exists or cannot be written.
    :raises ValueError: if the key is of another length.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key must be {KEY_BYTES} bytes, not {len(key)}")
    write_private(path, key.hex().encode("ascii") + b"\n")


def read_private(path: str | os.PathLike[str]) -> bytes:
    """Read a file that nobody but its owner may read or change.

    :raises KeyFileError: if that is not so, or it cannot be read.
    """
    try:
        link = os.lstat(path)
        if stat.S_ISLNK(link.st_mode) and (problem := owner_problem(link)):
            raise KeyFileError(f"{path}: the symbolic link {problem}")
        # Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            # Of what was opened, not of what has that name by now.
            if problem := file_problem(os.fstat(file)):
                raise KeyFileError(f"{path}: the file {problem}")
            return os.read(file, FILE_BYTES_MAX)
        finally:
            os.close(file)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error


def write_private(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a new file that only this user may read, and have it on the disk.

    :raises KeyFileError: if there is one of that name, a symbolic link too, or it cannot be
        written; then nothing of it is left.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise KeyFileError(f"{path}: exists already, and keys are never overwritten") from error
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    try:
        try:
            # The umask may have taken away even the owner's rights.
            os.fchmod(file, 0o600)
            written = 0
            while written < len(data):
                written += os.write(file, data[written:])
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(Path(path).parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise KeyFileError(f"{path}: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_problem(status: os.stat_result) -> str | None:
    """Why a file is no place for a secret, or `None`."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if problem := owner_problem(status):
        return problem
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return f"has mode {mode:04o}, so others may use it; `chmod 600` it, and make a new key"
    return None


def owner_problem(status: os.stat_result) -> str | None:
    """Why a file's owner is not to be trusted, or `None`."""
    if status.st_uid in (os.geteuid(), 0):
        return None
    return f"belongs to user {status.st_uid}, neither to this one ({os.geteuid()}) nor to root"
