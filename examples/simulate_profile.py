"""What a pair would gain on hardware that is not here: ``python examples/simulate_profile.py``.

The latencies are those of a profile, in seconds by the number of tokens of a forward, and of a
draft step by the number of branches. They are made up: `specbranch profile` measures a machine's.
"""

import json
import tempfile
from pathlib import Path

from specbranch.cli import main as specbranch

PROFILE = {
    "target": {"forward": {"1": 0.030, "16": 0.034}, "call": 0.0002},
    "draft": {"forward": {"1": 0.003, "12": 0.004}, "call": 0.0002},
    "devices": {"unit": "GPU", "plain": 1, "parallel": 2},
    "source": "made up for the example",
}


def main() -> int:
    """Predict every method's speed with these latencies."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "profile.json"
        file.write_text(json.dumps(PROFILE))
        return specbranch(
            ["simulate", "--profile", str(file), "--limit", "1", "--max-tokens", "32"]
        )


if __name__ == "__main__":
    raise SystemExit(main())
