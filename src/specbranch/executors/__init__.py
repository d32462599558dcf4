"""Where a model runs: a executor hosts one worker and takes calls that return futures."""
