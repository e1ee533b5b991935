"""What a report says and how it is set: one self-contained page, and the same as text.

The package bears the name of a public verb, ``energylens.report(rows, "report.html")``, and an
import of anything in it would hide that verb behind the package; so the package can be called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> None:
        import_module("energylens.door").report(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
