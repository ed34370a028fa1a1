# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The process of one cell: ``python -m monai_autoaug.evaluation.comparison.child CELL PLACE``.

A process a cell, so that its memory can be told from that of others, and one that fails leaves the others alone. It
ends, with all that it has begun, when the process that began it is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

__all__ = ["main"]


def _end_with_parent() -> None:
    """Standard input is a pipe whose other end only the parent holds; it is at its end when that is gone."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        if hasattr(os, "killpg") and os.getpgid(0) == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(words: list[str]) -> int:
    """Work on a cell.

    Args:
        words: the cell's folder, and the place as JSON.

    Returns:
        Exit code: 0 when the cell is done, 2 for a fault of options, data or the file system.
    """
    _end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended, too
    from monai_autoaug.errors import AutoAugError
    from monai_autoaug.evaluation.comparison.cells import CellFolder
    from monai_autoaug.evaluation.comparison.working import Place, telling, work

    folder = CellFolder(Path(words[0]))
    try:
        with telling(folder.progress) as listener:
            work(folder, Place.from_json(words[1]), listener)
    except AutoAugError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:  # a full disk, or the like; where it comes from is for the log alone
        traceback.print_exc()
        print(f"error: {error.filename or folder.path}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # the parent tells
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
