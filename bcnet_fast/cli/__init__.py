"""Shared by the commands: flags, errors, exit codes and the demo."""
