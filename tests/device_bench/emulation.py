"""Whether tests can use the emulator: a reason to skip on a user's machine, to fail in CI."""

from __future__ import annotations

import os

import pytest

from device_bench import emulator_setup


def need_emulator() -> None:
    """Skip the test where the emulator is not set up; fail it there in CI."""
    if emulator_setup.installed() is not None:
        return
    reason = "the emulator is not set up: make emulator"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
