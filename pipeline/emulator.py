"""The verb `emulator`: fetches and builds what `emulated:` devices need, once, without root."""

from __future__ import annotations

import argparse

from device_bench import emulator_setup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb `emulator` takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Set up below build/emulator; at once if it is there."""
    emulator_setup.set_up(say=lambda line: print(line, flush=True))
    print(f"{emulator_setup.FOLDER}: ready, as devices emulated:cortex-a53, cortex-a72 and cortex-a76")
    return 0
