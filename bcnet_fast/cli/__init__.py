"""Shared by the commands: flags, errors, exit codes, threads and the demo."""

from .threads import spin_briefly

spin_briefly()  # here, because commands that compute for long import this package before torch
