"""torchvision without torch's compiler: importing this room imports torchvision in a tenth of the time.

torchvision asks torch._dynamo at import for one function, which tells whether a device can compile, and
calls it in deterministic training on a GPU alone. With it come some thousand modules and half of the
seconds before a first prediction. Here the question waits until it is asked.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo", "torch._dynamo.utils"


def _is_compile_supported(device_type: Any) -> Any:
    return import_module(_COMPILER[1]).is_compile_supported(device_type)


def import_torchvision() -> None:
    """Import it with a stand-in for what it wants of the compiler, and as it is where that is not enough."""
    if "torchvision" not in sys.modules and _COMPILER[0] not in sys.modules:
        package, utilities = (ModuleType(name) for name in _COMPILER)
        package.__path__ = []
        utilities.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
        sys.modules |= {package.__name__: package, utilities.__name__: utilities}
        try:
            import_module("torchvision")
        except Exception:  # a version that wants more, whatever it then trips over
            pass
        finally:
            for name in _COMPILER:
                del sys.modules[name]
    import_module("torchvision")
    # What a first attempt had imported is not imported again, so nothing has bound it to its parent.
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if name.startswith("torchvision.") and not hasattr(sys.modules[parent], child):
            setattr(sys.modules[parent], child, module)


import_torchvision()
