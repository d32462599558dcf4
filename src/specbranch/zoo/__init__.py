"""The bundled models: a toy pair, the recipe that made it, and drafts for targets of others."""

from pathlib import Path

PAIR = Path(__file__).parent / "pair"
BUNDLED = {name: PAIR / name for name in ("target", "draft", "draft-weak")}
PREDICTORS = {draft: PAIR / f"hrad-{draft}.safetensors" for draft in ("draft", "draft-weak")}

_SMOLLM2 = Path(__file__).parent / "smollm2"
SMOLLM2_DRAFTS = {file.stem: file for file in sorted(_SMOLLM2.glob("*.gguf"))}
