"""Where a model runs: a lane hosts one worker and takes calls that return futures."""
