"""Runs a target on inputs without end, or on the files that are named.

    python -m tests.fuzz TARGET [--runs N] [--steps N] [--seconds S] [--seed N] [--random] [FILE...]

It begins with tests/fuzz/corpus/TARGET. With atheris (the extra `fuzz`), branches of Python code
guide it, and inputs that reach something new are kept under build/fuzz/TARGET. Without it, with
--random, which is faster, or under a sanitizer, which is what `make fuzz` does, inputs of both
folders are changed at random. The input of a finding is in build/fuzz, too: TARGET-finding, or as
libFuzzer names it.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import sys
import time
import traceback
from collections import deque
from pathlib import Path

from tests.support import SANITIZED

try:
    import atheris
except ImportError:
    atheris = None

# The runtime of gcc's sanitizers takes the place of what atheris counts branches with.
GUIDED = atheris is not None and not SANITIZED and "--random" not in sys.argv
#: Whose branches guide the fuzzer.
GUIDES = ["tests.reference", "rabble.cluster"]
with atheris.instrument_imports(include=GUIDES) if GUIDED else contextlib.nullcontext():
    from tests.fuzz.mutators import mutated
    from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("build", "fuzz")
#: Of an input.
BYTES_MAX = 4_096
#: Seconds between two lines that say how far it is.
SAY_S = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=0, help="inputs; 0 is no bound")
    parser.add_argument("--steps", type=int, default=0, help="of who lies, at random; 0: no bound")
    parser.add_argument("--seconds", type=int, default=60, help="0 is no bound (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--random", action="store_true", help="do without atheris")
    parser.add_argument("files", nargs="*", type=Path, help="run just these")
    options = parser.parse_intermixed_args()
    if options.files:
        for file in options.files:
            TARGETS[options.target](file.read_bytes())
        return 0
    print(f"{options.target}: seed {options.seed}", flush=True)
    FOUND.joinpath(options.target).mkdir(parents=True, exist_ok=True)
    if GUIDED:
        return run_guided(options)
    return run_random(options)


def run_guided(options: argparse.Namespace) -> int:
    def change(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.randrange(4) == 0:
            return bytes(atheris.Mutate(data, size))
        return mutated(options.target, data, rng)[:size]

    argv = [
        sys.argv[0],
        f"-runs={options.runs or -1}",
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        f"-max_len={BYTES_MAX}",
        f"-artifact_prefix={FOUND / options.target}-",
        "-rss_limit_mb=4096",
        str(FOUND / options.target),
        str(CORPUS / options.target),
    ]
    atheris.Setup(argv, TARGETS[options.target], custom_mutator=change)
    atheris.Fuzz()
    return 0


def run_random(options: argparse.Namespace) -> int:
    """In a child, for a sanitizer that finds something ends the process."""
    last = mmap.mmap(-1, BYTES_MAX + 4)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(KeyboardInterrupt):
            os._exit(change_at_random(options, last))
        os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 2):
        file = FOUND / f"{options.target}-finding"
        file.write_bytes(last[4 : 4 + int.from_bytes(last[:4], "big")])
        print(f"{options.target}: a finding; its input is {file}")
    return code


def change_at_random(options: argparse.Namespace, last: mmap.mmap) -> int:
    rng, target = random.Random(options.seed), TARGETS[options.target]
    folders = CORPUS / options.target, FOUND / options.target
    seeds = [file.read_bytes() for folder in folders for file in sorted(folder.iterdir())]
    # Changes add up: some of what was made is changed on.
    recent = deque(seeds, maxlen=2 * len(seeds) + 50)
    begun, runs, steps = time.monotonic(), 0, 0
    said_at = begun
    while not ((runs and runs == options.runs) or (options.steps and steps >= options.steps)):
        if options.seconds and time.monotonic() - begun > options.seconds:
            break
        chosen = rng.choice(seeds if rng.random() < 0.5 else recent)
        data = mutated(options.target, chosen, rng)[:BYTES_MAX]
        if rng.randrange(16) == 0:
            recent.append(data)
        if options.steps:
            # Who goes by steps wants what comes of many.
            others = (rng.choice(recent) for _ in range(rng.randrange(40)))
            data = b"".join([*others, data])[-BYTES_MAX:]
        last[:4] = len(data).to_bytes(4, "big")
        last[4 : 4 + len(data)] = data
        runs += 1
        try:
            steps += target(data) or 0
        except BaseException:
            traceback.print_exc()
            print(f"{options.target}: found after {so_far(runs, steps)}", flush=True)
            return 1
        if time.monotonic() - said_at >= SAY_S:
            said_at = time.monotonic()
            print(f"{options.target}: {so_far(runs, steps)} in {said_at - begun:.0f} s", flush=True)
    took = time.monotonic() - begun
    print(f"{options.target}: {so_far(runs, steps)} in {took:.0f} s, nothing found", flush=True)
    return 0


def so_far(runs: int, steps: int) -> str:
    return f"{runs} inputs" + (f", {steps} steps" if steps else "")


if __name__ == "__main__":
    sys.exit(main())
