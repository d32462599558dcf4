"""The folder in which compiled libraries and downloads are kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Where they are kept: ``$SPECBRANCH_CACHE``, or in the user's cache folder.

    A user without a home, as containers have, gets a folder beside the temporary files.
    """
    if found := os.environ.get("SPECBRANCH_CACHE"):
        return Path(found)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "specbranch"
    try:
        return Path.home() / ".cache" / "specbranch"
    except RuntimeError:  # neither $HOME nor an entry in the list of users
        return _temporary_folder()


def prepare_folder(folder: Path) -> None:
    """Make the folder, unless it is there.

    Raises:
        OSError: it cannot be made.
        PermissionError: it is another user's, who could have put any code there.
    """
    if folder != _temporary_folder():
        folder.mkdir(parents=True, exist_ok=True)
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user: set SPECBRANCH_CACHE to a folder")


def _temporary_folder() -> Path:
    """A folder of this user's among the temporary files, the same one at every start."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"specbranch-{user}"
