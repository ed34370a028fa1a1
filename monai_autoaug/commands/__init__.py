# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The subcommands of ``monai-autoaug``, a file each; and all that ``monai-autoaug train`` does, for Python.

Heavy packages are imported when a command runs or a function is called.
"""

from __future__ import annotations

from monai_autoaug.commands.results import complete, finish

__all__ = ["complete", "finish"]
