"""`pi05 bench`: the figures that docs/benchmarks.md quotes. They are printed, never asserted: machines differ."""
