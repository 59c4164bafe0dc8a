"""A wall clock of a daemon's own, which can be made to jump."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.support import PATIENCE

DAY = 86400  # seconds

# Shifts the wall clock of a process by the seconds that stand in a file, as it is now.
_SHIFT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile double none, *shift = &none;
static int (*real)(clockid_t, struct timespec *);
__attribute__((constructor)) static void begin(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int fd = open(getenv("SHIFT_FILE"), O_RDONLY | O_CLOEXEC);
    void *page = mmap(0, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) shift = page;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += (long)*shift;
    return status;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}
"""


class WallClock:
    """The wall clock of the processes that are started with `environ`; all other clocks are the machine's."""

    def __init__(self, folder: Path) -> None:
        """Skips the test where there is no C compiler."""
        if shutil.which("gcc") is None:
            pytest.skip("gcc is not installed")
        source, library, self._file = folder / "shift.c", folder / "shift.so", folder / "shift"
        source.write_text(_SHIFT)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=PATIENCE)
        self._file.write_bytes(struct.pack("d", 0))
        self.environ = {**os.environ, "LD_PRELOAD": str(library), "SHIFT_FILE": str(self._file)}
        self.words = ["env", f"LD_PRELOAD={library}", f"SHIFT_FILE={self._file}"]

    def jump(self, seconds: float) -> None:
        """Let it be so many seconds later than the machine's."""
        with self._file.open("r+b") as file:  # in place, for it is mapped
            file.write(struct.pack("d", seconds))
