"""The bundled model pair and the recipe that made it."""

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
BUNDLED = {name: PAIR / name for name in ("target", "draft", "draft-weak")}
PREDICTORS = {draft: PAIR / f"hrad-{draft}.safetensors" for draft in ("draft", "draft-weak")}
