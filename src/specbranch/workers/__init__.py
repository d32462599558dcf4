"""What a executor hosts: a runner and the decisions that belong next to it."""
