"""Shared by the benchmarks: timing, the machine, systems to compare with, and floors."""
