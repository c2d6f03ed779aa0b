"""Who is shut out of a mesh and for how long, and how nodes come to agree on it.

A *ban* is of a *subject*: the name of a node, or the fingerprint of a key that one node alone has.
Of each subject the last *word* counts, a ban or the lifting of one. Words are ordered by logical
time (Lamport), then by duration, then by the name of who gave them. So of two words whose givers
did not know of each other's the longer ban wins, and any ban wins against a lifting.

**Time.** No clock of another node is trusted: what travels is for how long a ban still goes on, and
each node counts that down by its own clock. Of what several tell of one word the least counts. So
on its way through the mesh a ban gets longer by what that way takes, and never by going round.

**What is kept.** No more than `bans_max` words: those in force before those that are over, and of
either the later ones. A word that is over is kept as long as there is room, so that who was away
does not bring it back. Before all others come the last few words in force that a node was told by
their giver itself: whoever floods the table pushes out what others said only where he is believed
to be them.

**How long at most.** Here a ban holds for its first `ban_seconds_max`, whoever said it. What is
beyond that this node does not carry out, but knows, and passes on: it decides for itself alone.

**What is claimed.** A member may ban and lift what it likes, as it may remove whom it likes: what
it says is told from what an operator says by nothing. But nobody is believed about itself, or who
is banned could take that back before its connections end. Of logical times the greater wins, so
those beyond belief (see `belief`) are left out: whatever was believed, there is a later word.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from rabble._core.ids import NodeId
from rabble.cluster.decide.belief import BELIEVED_WITHOUT_CLOCK
from rabble.cluster.decide.membership_state import (
    COUNTER_MAX,
    MembershipError,
    checked_int,
    checked_node,
    shown,
)
from rabble.cluster.decide.refusal import Refusal, RefusalCode
from rabble.limits import Limits

__all__ = [
    "BanChanges",
    "BanInForce",
    "Bans",
    "FINGERPRINT_BYTES",
    "ROW_BYTES_MAX",
    "Subject",
    "order_of",
    "subject_text",
]

#: A node's name, or the fingerprint of a key.
Subject = str | bytes
#: Of a fingerprint, which is a SHA-256.
FINGERPRINT_BYTES = 32
#: Of a word from the wire. What is longer than a node's own bound is cut to that.
DURATION_MS_MAX = (2**31 - 1) * 1_000
#: Bytes of the longest row: an array with two texts, three numbers and a boolean.
ROW_BYTES_MAX = 1 + 2 * (2 + 255) + 3 * 9 + 1
ROW_WIDTH = 6
#: The part of all words that one giver can have kept before all others.
FIRST_HAND_PART = 16
#: For checking a name alone.
ANY_ADDR = "localhost:0"


class Word(NamedTuple):
    """What was said last of a subject. Words have a total order, and the last one counts."""

    time: int
    #: For how long it was said; 0 lifts a ban.
    duration_ms: int
    #: The name of the node whose operator said it.
    by: str


@dataclasses.dataclass(slots=True)
class Entry:
    """The last word on a subject, and when it ends, in monotonic seconds of this node.

    :param until: as it was told.
    :param holds_until: when it ends here, which is before that if this node allows itself less.
    :param is_first_hand: its giver told it, or this node is its giver.
    :param is_noted_over: `Bans.tick` has said that it is over here.
    """

    word: Word
    until: float
    holds_until: float
    is_first_hand: bool
    is_noted_over: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BanInForce:
    """A ban as it stands.

    :param until: when it ends, in monotonic seconds of this node.
    """

    subject: Subject
    by: str
    until: float

    def left_s(self, now: float) -> int:
        """For how many seconds more it holds, rounded up, for people and for REFUSE."""
        # A time on a clock has a rest in its last digits.
        return max(math.ceil(round(self.until - now, 3)), 1)


@dataclasses.dataclass(frozen=True, slots=True)
class BanChanges:
    """What was learned from a peer.

    :param learned: subjects of which there is a later word now.
    :param confirmed: those of which the peer told the word that is known here.
    :param forgotten: those whose ban was in force, and for which there was no room any more.
    :param disbelieved: how many words were left out, as their times are beyond belief.
    """

    learned: tuple[Subject, ...] = ()
    confirmed: tuple[Subject, ...] = ()
    forgotten: tuple[Subject, ...] = ()
    disbelieved: int = 0


class Bans:
    """The bans that one node knows.

    :param own: this node.
    :param limits: its `bans_max` and `ban_seconds_max` are used.
    :param highest_believed: of the numbers of others, now; see `belief`.

    `now` is monotonic seconds throughout. Neither thread-safe nor locked: one thread owns it.
    """

    def __init__(
        self,
        own: NodeId,
        limits: Limits | None = None,
        highest_believed: Callable[[], int] = lambda: BELIEVED_WITHOUT_CLOCK,
    ) -> None:
        limits = limits or Limits()
        self._own = own
        self._bans_max = limits.bans_max
        self._seconds_max = limits.ban_seconds_max
        self._highest_believed = highest_believed
        self._entries: dict[Subject, Entry] = {}
        # The highest logical time that was seen.
        self._time = 0

    # What it knows.

    def __len__(self) -> int:
        """How many words are known, those that are over too."""
        return len(self._entries)

    def __contains__(self, subject: Subject) -> bool:
        """Whether something was said of it."""
        return subject in self._entries

    def in_force(self, now: float) -> list[BanInForce]:
        """The bans that hold, names first, in their order."""
        bans = (self.get(subject, now) for subject, _ in self._sorted())
        return [ban for ban in bans if ban is not None]

    def get(self, subject: Subject, now: float) -> BanInForce | None:
        """The ban of a subject, if it holds."""
        entry = self._entries.get(subject)
        if entry is None or entry.holds_until <= now:
            return None
        return BanInForce(subject, entry.word.by, entry.holds_until)

    def is_cut(self, subject: Subject, now: float) -> bool:
        """Whether a ban goes on elsewhere, and is over here, as this node allows itself less."""
        entry = self._entries.get(subject)
        return entry is not None and entry.holds_until <= now < entry.until

    def refusal(self, name: str, keys: Iterable[bytes], now: float) -> Refusal | None:
        """Why a node may not be connected: the ban that holds for the longest, if there is one.

        :param keys: the fingerprints of the keys that it has shown, and that it alone has.
        """
        subjects: tuple[Subject, ...] = (name, *keys)
        bans = [ban for each in subjects if (ban := self.get(each, now)) is not None]
        if not bans:
            return None
        ban = max(bans, key=lambda ban: ban.until)
        left_s = ban.left_s(now)
        text = f"{subject_text(ban.subject)} is banned for {left_s} s more"
        return Refusal(RefusalCode.BANNED, text, ban_s=left_s)

    def next_tick(self) -> float | None:
        """When a ban ends that holds, in monotonic seconds."""
        if not self._entries:
            return None
        return min(
            (each.holds_until for each in self._entries.values() if not each.is_noted_over),
            default=None,
        )

    def tick(self, now: float) -> list[Subject]:
        """The subjects whose bans are over since the last call, by time or by a lifting."""
        over = []
        for subject, entry in self._entries.items():
            if not entry.is_noted_over and entry.holds_until <= now:
                entry.is_noted_over = True
                over.append(subject)
        return over

    # What is sent of it.

    def rows(
        self,
        now: float,
        subjects: Iterable[Subject] | None = None,
        without: Collection[Subject] = (),
    ) -> list[list[Any]]:
        """The words on these subjects, or all, as they are sent: see MEMBERSHIP in the protocol.

        :param without: subjects that are left out.
        """
        wanted = None if subjects is None else set(subjects)
        return [
            [subject, *entry.word, left_ms_of(entry, now), self._is_own(entry)]
            for subject, entry in self._sorted()
            if (wanted is None or subject in wanted) and subject not in without
        ]

    def summary(self, now: float, without: Collection[Subject] = ()) -> list[list[Any]]:
        """What nodes that know the same have in common: all but how long each ban still goes on.

        :param without: subjects that are left out.
        """
        return [
            [subject, *entry.word, entry.until <= now]
            for subject, entry in self._sorted()
            if subject not in without
        ]

    # What changes it.

    def ban(self, subject: Subject, seconds: float, now: float) -> tuple[Subject, ...]:
        """Ban a subject from now on, for so long, whatever was said of it before.

        :param seconds: above 0, at most `ban_seconds_max`.
        :returns: the subjects whose bans are in force and had to be forgotten for it.
        """
        if not 0 < seconds <= self._seconds_max:
            raise ValueError(f"a ban must take up to {self._seconds_max} s, not {seconds}")
        # At least one, as 0 would lift it.
        duration_ms = max(round(seconds * 1_000), 1)
        self._say(subject, duration_ms, now + duration_ms / 1_000)
        return self._forget_surplus(now)

    def lift(self, subject: Subject, now: float) -> bool:
        """End a ban.

        :returns: whether it was in force, here or elsewhere.
        """
        if self.get(subject, now) is None and not self.is_cut(subject, now):
            return False
        self._say(subject, 0, now)
        self._forget_surplus(now)
        return True

    def forget(self, subjects: Iterable[Subject]) -> None:
        """Know nothing of these any more: others know better."""
        for subject in subjects:
            self._entries.pop(subject, None)

    def merge(self, rows: object, now: float, told_by: Sequence[Subject] = ()) -> BanChanges:
        """Take in what a peer knows.

        :param rows: what its `rows` returned, decoded; trusted in nothing.
        :param told_by: the name of the peer, and its keys, about which it is not believed.
        :raises MembershipError: if these are no rows. Nothing of them was taken in then.
        """
        highest = self._highest_believed()
        learned: dict[Subject, None] = {}
        confirmed, disbelieved = [], 0
        for subject, word, left_ms, is_own in checked_rows(rows):
            if subject in told_by:
                continue
            if word.time > highest:
                disbelieved += 1
                continue
            self._time = max(self._time, word.time)
            # Of the whole ban the same part is cut off by all that allow themselves as much.
            cut_ms = max(word.duration_ms - self._seconds_max * 1_000, 0)
            until, holds_until = now + left_ms / 1_000, now + (left_ms - cut_ms) / 1_000
            is_first_hand = is_own and word.by in told_by[:1]
            known = self._entries.get(subject)
            if known is None or word > known.word:
                # One that was over at once has never been in force here.
                is_over = holds_until <= now and known is None
                self._entries[subject] = Entry(word, until, holds_until, is_first_hand, is_over)
                learned[subject] = None
            elif word == known.word:
                known.until = min(known.until, until)
                known.holds_until = min(known.holds_until, holds_until)
                known.is_first_hand |= is_first_hand
                confirmed.append(subject)
        # What there is no room for at all is not forgotten: it was never known.
        forgotten = tuple(each for each in self._forget_surplus(now) if each not in learned)
        return BanChanges(
            tuple(subject for subject in learned if subject in self._entries),
            tuple(subject for subject in confirmed if subject in self._entries),
            forgotten,
            disbelieved,
        )

    # The rest is internal.

    def _say(self, subject: Subject, duration_ms: int, until: float) -> None:
        self._time = min(self._time + 1, COUNTER_MAX)
        word = Word(self._time, duration_ms, self._own.name)
        self._entries[subject] = Entry(word, until, until, True)

    def _forget_surplus(self, now: float) -> tuple[Subject, ...]:
        """Keep as many words as there may be; the subjects whose bans were in force and are not."""
        surplus = len(self._entries) - self._bans_max
        if surplus <= 0:
            return ()

        first = self._first_hand(now)

        def rank(subject: Subject) -> tuple[Any, ...]:
            entry = self._entries[subject]
            return (subject in first, entry.until > now, entry.word, order_of(subject))

        lowest = sorted(self._entries, key=rank)[:surplus]
        in_force = tuple(subject for subject in lowest if self.get(subject, now) is not None)
        self.forget(lowest)
        return in_force

    def _is_own(self, entry: Entry) -> bool:
        """Whether this start of the node gave that word, whatever others say of whom it is by."""
        return entry.is_first_hand and entry.word.by == self._own.name

    def _first_hand(self, now: float) -> set[Subject]:
        """Of each giver the last few words in force that it told itself."""
        latest = sorted(
            (
                (entry.word, subject)
                for subject, entry in self._entries.items()
                if entry.is_first_hand and entry.until > now
            ),
            key=lambda pair: pair[0],
            reverse=True,
        )
        most = max(self._bans_max // FIRST_HAND_PART, 1)
        count = collections.Counter[str]()
        first = set()
        for word, subject in latest:
            count[word.by] += 1
            if count[word.by] <= most:
                first.add(subject)
        return first

    def _sorted(self) -> list[tuple[Subject, Entry]]:
        return sorted(self._entries.items(), key=lambda item: order_of(item[0]))


def subject_text(subject: Subject) -> str:
    """A subject, for people."""
    if isinstance(subject, str):
        return f"the name {shown(subject)[1:-1]}"
    return f"the key {subject.hex()}"


def order_of(subject: Subject) -> tuple[bool, Any]:
    """Names come before fingerprints."""
    return isinstance(subject, bytes), subject


def left_ms_of(entry: Entry, now: float) -> int:
    """How long it still goes on: a part of a millisecond counts, so that what holds is not 0."""
    if entry.until <= now:
        return 0
    # A time on a clock has a rest in its last digits.
    left_ms = math.ceil(round((entry.until - now) * 1_000, 3))
    return min(max(left_ms, 1), entry.word.duration_ms)


def checked_rows(rows: object) -> list[tuple[Subject, Word, int, bool]]:
    """Of each row from the wire the subject, the word, the milliseconds that are left, and whether
    the sender gave it.
    """
    if type(rows) is not list:
        raise MembershipError(f"'b' must be an array, not {shown(rows)}")
    found = [checked_row(row) for row in rows]
    if len({subject for subject, *_ in found}) < len(found):
        raise MembershipError("'b' has a subject twice")
    return found


def checked_row(row: object) -> tuple[Subject, Word, int, bool]:
    if type(row) is not list or len(row) != ROW_WIDTH:
        raise MembershipError(f"a ban is an array of {ROW_WIDTH} elements, not {shown(row)}")
    subject, time, duration_ms, by, left_ms, is_own = row
    if type(subject) is bytes:
        if len(subject) != FINGERPRINT_BYTES:
            raise MembershipError(
                f"the fingerprint of a key has {FINGERPRINT_BYTES} bytes, not {len(subject)}"
            )
    elif type(subject) is str:
        checked_node(subject, ANY_ADDR)
    else:
        raise MembershipError(f"a ban is of a name or a fingerprint, not of {shown(subject)}")
    checked_node(by, ANY_ADDR)
    checked_int(time, 1, COUNTER_MAX, "the time of a ban")
    checked_int(duration_ms, 0, DURATION_MS_MAX, "the duration of a ban")
    checked_int(left_ms, 0, duration_ms, "what is left of a ban")
    if type(is_own) is not bool:
        raise MembershipError(
            f"whether a ban is the sender's own is a boolean, not {shown(is_own)}"
        )
    return subject, Word(time, duration_ms, by), left_ms, is_own
