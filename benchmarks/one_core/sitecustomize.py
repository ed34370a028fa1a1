# Copyright (c) monai_autoaug contributors
# Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Gives nnU-Net's commands one thread: on a CPU they take one a core, whatever OMP_NUM_THREADS says.

Python imports this file because ``PYTHONPATH`` names its folder. Threads that wait for each other burn CPU time, which
benchmarks count. (OMP_THREAD_LIMIT is no way out: oneDNN's barriers wait for ever for threads that don't come.) How
many augmentation processes nnU-Net starts follows ``os.cpu_count``, which stays.
"""

import multiprocessing

multiprocessing.cpu_count = lambda: 1
