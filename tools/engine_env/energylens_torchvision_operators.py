"""Declares two operators of torchvision as soon as torchvision is imported.

Installed next to a CPU build of torch, torchvision's usual build (one for CUDA) cannot load
its library, and its Python part then misses the operators that it registers fakes for. This
module is imported at interpreter start through a ``.pth`` file, in child processes too.
"""

from __future__ import annotations

import importlib.abc
import sys
from typing import Any

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareFirst(importlib.abc.MetaPathFinder):
    """Finds nothing; it only sees that torchvision is about to be imported."""

    def __init__(self) -> None:
        self.library: Any = None  # the declarations live as long as this does

    def find_spec(self, name: str, *_: object) -> None:
        """Declare the operators before torchvision's first line runs."""
        if name != "torchvision" or self.library is not None:
            return
        import torch

        self.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            try:
                self.library.define(operator + SCHEMA)
            except RuntimeError:
                continue  # a library that did load has declared it


sys.meta_path.insert(0, DeclareFirst())
