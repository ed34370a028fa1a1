# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The subcommands of ``monai-autoaug``, a file each; heavy packages are imported when a command runs."""
