"""Make forked workers safe: a child of a process that computed with threads must not wait for threads it has not.

OpenMP pools do not survive a fork. A parent that ran faiss or a torch forward pass and then calls
`map(num_proc=2)` would hang for ever in its children.
"""

from __future__ import annotations

import contextlib
import os
import sys

in_child = False  # this process was forked from one that had imported the package


def _one_thread() -> None:
    global in_child
    in_child = True
    # not numba: asked for its number of threads it would start them, and give OpenMP theirs back; kernels of this
    # package run in threads of `_compiled.in_threads`, which has one here
    for name, setter in (("torch", "set_num_threads"), ("faiss", "omp_set_num_threads")):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, setter):
            with contextlib.suppress(Exception):  # a half-imported library has no threads yet
                getattr(module, setter)(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)
