# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Code that `export` writes into the files it makes; nothing here is imported by the package."""
