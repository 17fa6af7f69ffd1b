"""Reading pickles without running them: no name in a file is imported, and nothing is ever called.

A pickle is a program for a small machine that names classes and functions and calls them. This machine
has no way to any of them: what a file makes of a name becomes a `Thing`, which keeps the name and, where
it is a mapping, the items. Of the names that hold weights, a table of makers says what stands for them.
"""

from __future__ import annotations

import pickle
import pickletools
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


class Stream(Protocol):
    """What a pickle is read from: a memory map, or bytes as a file."""

    def read(self, size: int = -1, /) -> bytes:
        """As many bytes, or up to the end."""
        ...

    def readline(self) -> bytes:
        """Up to a newline."""
        ...


class Thing(dict[Any, Any]):
    """What stands for an object of any class: the name of the class, and the items of a mapping."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def fill(self, state: object) -> None:
        """Take what the pickle would fill the object with."""


class _Odd:
    """What stands for a key that is neither text nor a number: hashing one could take any depth."""


@dataclass(frozen=True)
class Name:
    """A class or a function that a pickle names, as "module.name"."""

    text: str


Make = Callable[..., Any]
Makers = Mapping[str, Make]
Persistent = Callable[[Any], Any]

_KEYS = (str, int, float, bool, bytes, type(None))

# Values of the standard library that training scripts keep beside the weights.
_HARMLESS = {
    *("argparse", "array", "collections", "configparser", "copyreg", "dataclasses", "datetime", "decimal"),
    *("enum", "fractions", "ipaddress", "numbers", "pathlib", "random", "re", "string", "types", "typing"),
    *("uuid", "zoneinfo", "__future__", "_codecs", "_operator", "operator", "_strptime"),
}
_HARMLESS_NAMES = {
    *("functools.partial", "logging.Logger", "logging.getLogger", "platform.uname_result"),
    *("time.struct_time", "sys.version_info", "itertools.count"),
}
_HOSTILE = {
    *(f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "input", "breakpoint", "vars")),
    *(f"builtins.{name}" for name in ("__import__", "globals", "locals", "setattr", "delattr", "execfile")),
    *("torch.load", "torch.serialization.load", "numpy.load", "numpy.loads"),
}
_HOSTILE_MODULES = ("torch.hub", "torch.jit", "torch.utils.cpp_extension", "numpy.testing", "numpy.f2py")
_HOSTILE_PACKAGES = {"pip", "setuptools", "pkg_resources", "IPython", "commands", "sartorius_infer"}


def require_harmless(name: str) -> None:
    """Refuse a name that no checkpoint has a use for: it would do nothing here, but tells an attack.

    Of the standard library only values are known; of other packages every class is a `Thing`. Raises
    pickle.UnpicklingError.
    """
    top = name.partition(".")[0]
    if top == "builtins":
        hostile = name.count(".") > 1
    elif top in sys.stdlib_module_names:
        # A name within a class is a method; of modules within packages there are few.
        deep = name.count(".") > 1 and not name.startswith(("collections.abc.", "pathlib._local."))
        hostile = deep or not (top in _HARMLESS or name in _HARMLESS_NAMES)
    else:
        hostile = top in _HOSTILE_PACKAGES or name.startswith(tuple(f"{m}." for m in _HOSTILE_MODULES))
    if hostile or name in _HOSTILE:
        raise pickle.UnpicklingError(f"GLOBAL {name}")


def no_persistent(pid: Any) -> Any:
    """For pickles that stand alone."""
    raise pickle.UnpicklingError("GLOBAL the larger file that it was cut from")


def run(stream: Stream, makers: Makers, persistent: Persistent = no_persistent) -> Any:
    """What the pickle that begins at the stream's position holds; the position is then behind it.

    makers      for names such as "numpy.dtype": what stands for a call of it, from its arguments
    persistent  what stands for an object that lies outside the pickle, from its id

    Raises pickle.UnpicklingError, ValueError and what makers raise.
    """
    machine = _Machine(makers, persistent)
    for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]
        if opcode.name in _PUSH:
            machine.push(argument)
        else:
            _STEPS[opcode.name](machine, argument)
    return machine.stack.pop()


class _Machine:
    """A stack, stacks below marks, and a memory."""

    def __init__(self, makers: Makers, persistent: Persistent) -> None:
        self.makers, self.persistent = makers, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memory: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        """Put a value on top."""
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a stack of its own."""
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """End it, and give what is on it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: object, name: object) -> None:
        """A class or function, under its name in Python 3."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise pickle.UnpicklingError("a name that is no text")
        text = f"{IMPORT_MAPPING.get(module, module)}.{name}"
        require_harmless(text)
        self.push(Name(text))

    def make(self, what: object, arguments: object) -> None:
        """What stands for a call, or for a new object of a class."""
        if not isinstance(arguments, (tuple, list)):
            raise pickle.UnpicklingError("arguments that are no tuple")
        if isinstance(what, Name):
            self.push(call(what, arguments, self.makers))
        elif isinstance(what, Thing):  # such as a method that is looked up, then called
            self.push(Thing(what.name))
        else:
            raise pickle.UnpicklingError(f"a call of a {type(what).__name__}")

    def build(self, state: object) -> None:
        """A state goes to what stands on top."""
        top = self.stack[-1]
        if isinstance(top, Name):
            raise pickle.UnpicklingError(f"GLOBAL {top.text}")
        if hasattr(top, "fill"):
            top.fill(state)
        elif not isinstance(top, dict):
            raise pickle.UnpicklingError(f"a state of a {type(top).__name__}")

    def extend(self, items: list[Any]) -> None:
        """Items of a list, or of an object that is like one."""
        top = self.stack[-1]
        if type(top) is list:
            top.extend(items)
        elif not isinstance(top, Thing):
            raise pickle.UnpicklingError(f"items of a {type(top).__name__}")

    def update(self, items: list[Any]) -> None:
        """Keys and values in turn."""
        top = self.stack[-1]
        if not isinstance(top, dict):
            raise pickle.UnpicklingError(f"keys of a {type(top).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            top[key if type(key) in _KEYS else _Odd()] = value

    def fold(self, count: int) -> None:
        """A tuple of what stands on top."""
        if len(self.stack) < count:
            raise pickle.UnpicklingError("a tuple of more than there is")
        self.stack[-count:] = [tuple(self.stack[-count:])]


def call(what: Name, arguments: tuple[Any, ...] | list[Any], makers: Makers) -> Any:
    """What stands for a call: a maker's result, else a `Thing`."""
    make = makers.get(what.text)
    return Thing(what.text) if make is None else make(*arguments)


def _obj(machine: _Machine, _: Any) -> None:
    what, *arguments = machine.pop_mark()
    machine.make(what, arguments)


def _inst(machine: _Machine, name: str) -> None:
    arguments = machine.pop_mark()
    machine.name(*name.split(" ", 1))
    machine.make(machine.stack.pop(), arguments)


def _call(machine: _Machine, _: Any) -> None:
    arguments = machine.stack.pop()
    machine.make(machine.stack.pop(), arguments)


def _call_with_keywords(machine: _Machine, _: Any) -> None:
    machine.stack.pop()
    _call(machine, _)


def _stack_name(machine: _Machine, _: Any) -> None:
    name = machine.stack.pop()
    machine.name(machine.stack.pop(), name)


def _setitem(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.update([machine.stack.pop(), value])


def _dict(machine: _Machine, _: Any) -> None:
    items = machine.pop_mark()
    machine.push({})
    machine.update(items)


def _frozenset(machine: _Machine, _: Any) -> None:
    machine.pop_mark()
    machine.push(Thing("builtins.frozenset"))


def _put(machine: _Machine, index: Any) -> None:
    machine.memory[int(index)] = machine.stack[-1]


def _pop(machine: _Machine, _: Any) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_mark()


def _extension(machine: _Machine, index: Any) -> None:
    raise pickle.UnpicklingError(f"GLOBAL EXT {index}")


def _buffer(machine: _Machine, _: Any) -> None:
    raise pickle.UnpicklingError("GLOBAL a buffer outside of it")


_PUSH = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(Thing("builtins.set")),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "DICT": _dict,
    "FROZENSET": _frozenset,
    "TUPLE1": lambda m, _: m.fold(1),
    "TUPLE2": lambda m, _: m.fold(2),
    "TUPLE3": lambda m, _: m.fold(3),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.pop_mark()),
    "SETITEM": _setitem,
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    "MARK": lambda m, _: m.mark(),
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    "MEMOIZE": lambda m, _: _put(m, len(m.memory)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memory[int(i)])),
    "GLOBAL": lambda m, name: m.name(*name.split(" ", 1)),
    "STACK_GLOBAL": _stack_name,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _call),
    "NEWOBJ_EX": _call_with_keywords,
    "OBJ": _obj,
    "INST": _inst,
    "BUILD": lambda m, _: m.build(m.stack.pop()),
    "PERSID": lambda m, pid: m.push(m.persistent(pid)),
    "BINPERSID": lambda m, _: m.push(m.persistent(m.stack.pop())),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _extension),
    **dict.fromkeys(("NEXT_BUFFER", "READONLY_BUFFER"), _buffer),
}
