"""Methods measured side by side: same prompts, same hardware, interleaved within one run."""
