"""Methods measured side by side: same prompts, same hardware, in turn within one run."""
