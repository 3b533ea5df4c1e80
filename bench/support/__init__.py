"""What the benchmarks share: timing, the machine, systems to compare with, and floors."""
