"""One parser under coverage-guided fuzzing (atheris), beside the blind damage of ``fuzz.py``.

Needs ``pip install 'clue-unlearning[fuzz]'``. Arguments after ``--`` are libFuzzer's, e.g. ``-runs=200000`` or
``-max_total_time=60``. It stops at the first forgery or crash, and leaves the input in a file.
"""

import argparse
import random
import sys

import atheris

with atheris.instrument_imports(include=["clue_protocol", "clue_agent", "securesystemslib"]):
    from fuzz_targets import REFUSALS, all_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--door", default="request envelope", help="name of the target, as 'make fuzz' prints it")
    parser.add_argument("libfuzzer", nargs="*", metavar="-- OPTION", help="options of libFuzzer")
    arguments = parser.parse_args()
    targets = {target.name: target for target in all_targets()}
    if arguments.door not in targets:
        parser.error(f"--door is one of: {', '.join(targets)}")
    target = targets[arguments.door]
    genuine = target.genuine()

    def one_input(data: bytes) -> None:
        try:
            accepted = target.judge(data)
        except REFUSALS:
            return
        if accepted not in genuine:
            raise AssertionError(f"{target.name}: accepted, but nobody signed it")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        # Half of libFuzzer's own kind, half of ours, which knows what an envelope is; a genuine one to begin with.
        rng = random.Random(seed)
        if len(data) < 16 or rng.random() < 0.05:
            data = rng.choice(target.seeds)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return rng.choice(target.mutators)(rng, data or b"\0", target.seeds)[:most]

    options = ["-max_len=65536", *arguments.libfuzzer]
    atheris.Setup([sys.argv[0], *options], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
