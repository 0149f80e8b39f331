"""What it costs, as ratios within one run; `make bench` runs all of it."""
