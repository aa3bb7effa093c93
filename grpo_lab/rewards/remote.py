"""Objects of another process: plain data by value, everything else by a name that only its own process can resolve.

Two peers talk through a pair of pipes, one frame (a length and JSON) at a time: the process of a policy's program and
the referee, which runs a check against it. What comes in becomes Python's own types and nothing else, whatever
the other process sends. Standard library only: `cell` loads this file by its path.
"""

import builtins
import collections
import datetime
import decimal
import fractions
import importlib
import json
import operator
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

MAX_FRAME = 1 << 28  # bytes
MAX_DEPTH = 100  # of containers in containers
_DIGITS = 10

_CONTAINERS = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": collections.deque}
_BY_TEXT: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "float": (float, float.__repr__, float),
    "complex": (complex, complex.__repr__, complex),
    "Fraction": (fractions.Fraction, str, fractions.Fraction),
    "Decimal": (decimal.Decimal, str, decimal.Decimal),
    "datetime": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "bytearray": (bytearray, bytearray.hex, bytearray.fromhex),
}
_BETWEEN_REMOTES = "eq ne lt le gt ge add sub mul truediv floordiv mod matmul and_ or_ xor".split()  # noqa: SIM905
_SAFE = """
    int float str bool list dict set frozenset tuple complex bytes bytearray range len min max sum abs sorted reversed
    any all map filter zip enumerate round pow divmod ord chr repr iter next bin hex oct object
"""
"""Builtins that cross the border by their names."""
_SHARED = """
    bisect collections copy dataclasses datetime decimal fractions functools heapq itertools math operator random re
    statistics string typing
"""
"""Modules whose functions and classes are this process's own, whoever imported them."""
_INSIDES = ("_", "gi_", "cr_", "ag_", "tb_", "f_", "co_")
"""How attributes begin that lead from an object to the code around it."""
_OF_ONE = {
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem", "neg", "abs")},
    **{name: getattr(builtins, name) for name in ("len", "iter", "next", "reversed", "str", "repr", "bool", "hash")},
    **{name: getattr(builtins, name) for name in ("int", "float")},
}
_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _BETWEEN_REMOTES},
    **_OF_ONE,
    **{name: getattr(builtins, name) for name in ("getattr", "setattr", "isinstance")},
    "call": lambda function, *arguments, **named: function(*arguments, **named),
}


class Remote:
    """An object of the other process. Operators work between two of them only: another operand stays here unseen."""

    def __init__(self, peer: "Peer", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def _ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        return peer.ask(operation, (self, *arguments), named)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and instance._ask("isinstance", self) is True

    def __enter__(self) -> Any:
        return self._ask("getattr", "__enter__")()

    def __exit__(self, *reason: object) -> None:
        self._ask("getattr", "__exit__")(None, None, None)


def _of_one(name: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._ask(name, *arguments)


def _between(name: str) -> Callable[[Remote, object], Any]:
    return lambda self, other: self._ask(name, other) if isinstance(other, Remote) else NotImplemented


for _name in _OF_ONE:
    setattr(Remote, f"__{_name}__", _of_one(_name))
for _name in _BETWEEN_REMOTES:
    setattr(Remote, f"__{_name.strip('_')}__", _between(_name))


class Peer:
    """One end of the talk. Raises EOFError where the other process ended or speaks another language."""

    def __init__(self, reads: int, writes: int, guarded: bool = False) -> None:
        """`guarded`: the other end may call what it was given and look at its data, and nothing else."""
        self._reads, self._writes, self._guarded = reads, writes, guarded
        self._objects: list[Any] = []
        self._errors: dict[str, type[BaseException]] = {}

    def serve(self, module: ModuleType) -> None:
        """Answer until the other end is closed."""
        self._objects.append(module.__dict__)
        while True:
            self._answer(self._receive())

    def names(self) -> dict[str, Any]:
        """The module that the other end serves: its modules of the standard library are imported, not asked for."""
        self._send({"names": True})
        described = self._wait()["value"]
        return {
            str(name): self._named(str(name), content) for name, content in described if not hasattr(builtins, name)
        }

    def ask(self, operation: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """The result of an operation over there. Lists, dicts and sets among the arguments change as they do there."""
        sent = [self._encode(value) for value in arguments]
        self._send({"do": operation, "with": sent, "named": {name: self._encode(v) for name, v in named.items()}})
        reply = self._wait()
        for value, before, after in zip(arguments, sent, reply.get("with", sent), strict=True):
            if before != after:
                _become(value, self._decode(after))
        return self._decode(reply["value"])

    def _wait(self) -> dict[str, Any]:
        """The reply; what the other end asks in between is answered."""
        while True:
            frame = self._receive()
            if "error" in frame:
                raise self._error(frame["error"], str(frame.get("text", "")))
            if "value" in frame:
                return frame
            self._answer(frame)

    def _answer(self, frame: dict[str, Any]) -> None:
        try:
            reply = self._described() if "names" in frame else self._result(frame)
        except EOFError:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the program raises belongs to the one who asked
            reply = {"error": [kind.__name__ for kind in type(error).__mro__], "text": str(error)}
        self._send(reply)

    def _result(self, frame: dict[str, Any]) -> dict[str, Any]:
        arguments = [self._decode(value) for value in frame["with"]]
        named = {name: self._decode(value) for name, value in frame["named"].items()}
        if self._guarded and (frame["with"][0][0] != "yours" or not _harmless(frame["do"], arguments)):
            raise PermissionError(frame["do"])
        value = _OPERATIONS[frame["do"]](*arguments, **named)
        changed = [
            self._encode(now) if type(now) in (list, dict, set, bytearray) else sent
            for now, sent in zip(arguments, frame["with"], strict=True)
        ]
        return {"value": self._encode(value), "with": changed}

    def _described(self) -> dict[str, Any]:
        module = self._objects[0].items()
        own = [(name, value) for name, value in module if not name.startswith("__") and not hasattr(builtins, name)]
        return {"value": [[name, self._content(value)] for name, value in own]}

    def _content(self, value: Any) -> list[Any]:
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        home, name = getattr(value, "__module__", None), getattr(value, "__name__", "")
        if home in _SHARED.split() and getattr(sys.modules.get(home), name, None) is value:
            return ["shared", [home, name]]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["error", [kind.__name__ for kind in value.__mro__]]
        return self._encode(value)

    def _named(self, name: str, content: list[Any]) -> Any:
        """A name of the standard library is the library's, whatever the other end has made of it."""
        module = name if name in sys.stdlib_module_names else content[1] if content[0] == "module" else ""
        if module.partition(".")[0] in sys.stdlib_module_names:
            return importlib.import_module(module)
        if content[0] == "shared" and content[1][0] in _SHARED.split():
            return getattr(importlib.import_module(content[1][0]), content[1][1])
        if content[0] == "error":
            kind = self._kind(content[1])
            self._errors[content[1][0]] = own = type(name, (kind,), {})
            return own
        return None if content[0] == "module" else self._decode(content)

    def _kind(self, names: list[str]) -> type[BaseException]:
        """The first of an exception's classes that is known here."""
        for name in names:
            kind = self._errors.get(name, getattr(builtins, str(name), None))
            if isinstance(kind, type) and issubclass(kind, BaseException):
                return kind
        return Exception

    def _error(self, names: list[str], text: str) -> BaseException:
        kind = self._kind(names)
        return kind(text) if issubclass(kind, Exception) and not issubclass(kind, UnicodeError) else Exception(text)

    def _encode(self, value: Any, depth: int = 0) -> list[Any]:
        if value is None or value is True or value is False:
            return ["constant", value]
        if isinstance(value, Remote) and object.__getattribute__(value, "_peer") is self:
            return ["yours", object.__getattribute__(value, "_number")]
        if depth < MAX_DEPTH and (plain := self._plain(value, depth + 1)) is not None:
            return plain
        if (name := getattr(value, "__name__", None)) and _builtin(name) is value:
            return ["builtin", name]
        self._objects.append(value)
        return ["mine", len(self._objects) - 1]

    def _plain(self, value: Any, depth: int) -> list[Any] | None:
        """Of plain data and of classes derived from it, by the value of the base class."""
        if isinstance(value, int):
            return ["int", hex(int.__index__(value))]
        if isinstance(value, str):
            return ["str", str.__str__(value)]
        if isinstance(value, dict):
            return ["dict", [[self._encode(k, depth), self._encode(v, depth)] for k, v in dict.items(value)]]
        if isinstance(value, range):
            return ["range", [value.start, value.stop, value.step]]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            fields = [type(value).__name__, list(value._fields)]
            return ["namedtuple", [fields, [self._encode(item, depth) for item in tuple.__iter__(value)]]]
        for name, kind in _CONTAINERS.items():
            if isinstance(value, kind):
                return [name, [self._encode(item, depth) for item in kind.__iter__(value)]]
        for name, (base, write, _) in _BY_TEXT.items():
            if isinstance(value, base):
                return [name, write(value)]
        return None

    def _decode(self, value: list[Any]) -> Any:
        kind, content = value
        if kind in _CONTAINERS:
            return _CONTAINERS[kind](self._decode(item) for item in content)
        if kind in _BY_TEXT:
            return _BY_TEXT[kind][2](content)
        return getattr(self, f"_decode_{kind}")(content)

    def _decode_constant(self, content: Any) -> bool | None:
        return {"None": None, "True": True, "False": False}[str(content)]

    def _decode_int(self, content: Any) -> int:
        return int(content, 16)

    def _decode_str(self, content: Any) -> str:
        return str(content)

    def _decode_dict(self, content: Any) -> dict[Any, Any]:
        return {self._decode(key): self._decode(item) for key, item in content}

    def _decode_range(self, content: Any) -> range:
        return range(*content)

    def _decode_namedtuple(self, content: Any) -> Any:
        (name, fields), items = content
        return collections.namedtuple(name, fields)(*map(self._decode, items))

    def _decode_yours(self, content: Any) -> Any:
        return self._objects[content]

    def _decode_builtin(self, content: Any) -> Any:
        if (value := _builtin(content)) is None:
            raise PermissionError(content)
        return value

    def _decode_mine(self, content: Any) -> Remote:
        return Remote(self, content)

    def _send(self, frame: dict[str, Any]) -> None:
        body = json.dumps(frame).encode()
        left = memoryview(f"{len(body):0{_DIGITS}}".encode() + body)
        try:
            while left:
                left = left[os.write(self._writes, left) :]
        except OSError as error:
            raise EOFError from error

    def _receive(self) -> dict[str, Any]:
        size = int(read_exactly(self._reads, _DIGITS))
        if size > MAX_FRAME:
            raise EOFError
        frame = json.loads(read_exactly(self._reads, size))
        if not isinstance(frame, dict):
            raise EOFError
        return frame


def _builtin(name: Any) -> Any:
    """The builtin of this name that may cross the border: those of _SAFE and exceptions; None for another."""
    value = getattr(builtins, str(name), None)
    return value if name in _SAFE.split() or (isinstance(value, type) and issubclass(value, Exception)) else None


def _harmless(operation: str, arguments: list[Any]) -> bool:
    """Whether the other end may do this with an object that it was given."""
    if operation in ("getattr", "setattr"):
        return isinstance(arguments[1], str) and not arguments[1].startswith(_INSIDES)
    return operation in ("call", "isinstance", *_OF_ONE, *_BETWEEN_REMOTES)


def _become(value: Any, now: Any) -> None:
    """Give a list, dict or set the content of another one."""
    if isinstance(value, list | bytearray):
        value[:] = now
    else:
        value.clear()
        value.update(now)


def read_exactly(descriptor: int, size: int) -> bytes:
    """Raises EOFError where there is less."""
    read = bytearray()
    while len(read) < size:
        chunk = os.read(descriptor, size - len(read))
        if not chunk:
            raise EOFError
        read += chunk
    return bytes(read)


def read_frame(descriptor: int) -> bytes:
    """A length in _DIGITS digits and so many bytes, and not one more."""
    return read_exactly(descriptor, int(read_exactly(descriptor, _DIGITS)))


def frame(body: bytes) -> bytes:
    return f"{len(body):0{_DIGITS}}".encode() + body
