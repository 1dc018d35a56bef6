"""Waiting for descriptors whose numbers are as high as those of a driver with many ports."""

from __future__ import annotations

import fcntl
import os

from driver.linux.waiting import wait_readable

HIGH = 5000


def test_descriptors_of_high_numbers() -> None:
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, HIGH)
    try:
        assert high >= HIGH
        assert wait_readable([high], 0) == frozenset()
        assert wait_readable([high], 0.01) == frozenset()
        os.write(writer, b"x")
        assert wait_readable([high, writer], None) == {high}
    finally:
        for descriptor in (reader, writer, high):
            os.close(descriptor)
