"""Executors: each hosts one worker and runs typed requests on it, which return futures."""
