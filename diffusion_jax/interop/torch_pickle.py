"""The pickle in a file of `torch.save`, read as a list of tensors and never as a program.

A pickle is a program: it may ask for any function of any installed module and call it. The reader here has no means
to call one. It walks the opcodes that state_dicts are written with, answers the few names that they contain with
constants, and refuses every other name and opcode. (Python's own unpickler, restricted to these names, would run no
code either, but a damaged number in a file makes it ask for all the machine's memory.)
"""

import enum
import math
import pathlib
import pickletools
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError

ADVICE = "Save the weights alone, in PyTorch: torch.save(model.state_dict(), PATH)."
_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
}


class Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: np.dtype
    size: int  # elements


class Tensor(NamedTuple):
    """How a tensor lies in its storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """Elements from the tensor's first to its last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


class _Name(enum.Enum):
    """What a pickle may ask for by name, beside the types of storages."""

    DICT = ("collections", "OrderedDict")
    TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    PARAMETER = ("torch._utils", "_rebuild_parameter")
    MODULE = ("__torch__", "any class that the program declares")
    TYPED = ("torch.jit._pickle", "a list or another value with its type")


_NAMES: dict[tuple[str, str], Any] = {name.value: name for name in (_Name.DICT, _Name.TENSOR, _Name.PARAMETER)}
_NAMES |= {("torch", storage): dtype for storage, dtype in _DTYPES.items()}
_SCRIPT_NAMES = {
    ("torch.jit._pickle", name): _Name.TYPED
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_LITERALS |= {"BINSTRING", "SHORT_BINSTRING"}  # names of tensors, as Python 2 wrote them
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(file: IO[bytes], path: pathlib.Path, script: bool = False) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle from a file's position, and leaves the position behind it.

    Args:
      path: the file's name, for errors.
      script: whether it is TorchScript's, whose modules become dicts of their attributes.

    Returns:
      What was pickled, with `Tensor` for each tensor (and parameter), a plain dict for each OrderedDict, and no
      attributes of either; and the storages that its tensors lie in, by key.

    Raises:
      UserError: the pickle asks for anything else than a state_dict needs.
      Exception: it is damaged; of whatever kind that turns out to be.
    """
    reader = _Reader(path, script)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        reader.step(opcode.name, argument)
    return reader.stack.pop(), reader.storages


class _Reader:
    """The pickle machine's stack and memo, and what each opcode does to them."""

    def __init__(self, path: pathlib.Path, script: bool):
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._path, self._script = path, script
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        stack = self.stack
        if opcode in _LITERALS:
            stack.append(argument)
        elif opcode in _CONSTANTS:
            stack.append(_CONSTANTS[opcode])
        elif opcode in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if opcode == "EMPTY_DICT" else [])
        elif opcode == "MARK":
            self._marks.append(len(stack))
        elif opcode in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[opcode])))
        elif opcode == "TUPLE":
            stack.append(tuple(self._pop_mark()))
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if opcode == "SETITEM" else self._pop_mark()
            _set_items(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif opcode in ("APPEND", "APPENDS"):
            _expect(stack[-2 if opcode == "APPEND" else self._marks[-1] - 1], list)
            items = self._pop(1) if opcode == "APPEND" else self._pop_mark()
            stack[-1].extend(items)
        elif opcode in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if opcode == "MEMOIZE" else argument] = stack[-1]
        elif opcode in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif opcode == "GLOBAL":
            stack.append(self._named(*argument.split(" ", 1)))
        elif opcode == "STACK_GLOBAL":
            stack.append(self._named(*self._pop(2)))
        elif opcode == "BINPERSID":
            stack.append(self._storage(*_expect(stack.pop(), tuple)))
        elif opcode == "REDUCE":
            stack.append(_reduce(*self._pop(2)))
        elif opcode == "NEWOBJ" and self._script:
            if self._pop(2) != [_Name.MODULE, ()]:
                raise ValueError("an object that is no module")
            stack.append({})
        elif opcode == "BUILD":
            attributes = stack.pop()
            if self._script:
                _set_items(stack[-1], _expect(attributes, dict).items())
            # Those of a state_dict are not kept; the versions of its layers are in one.
        elif opcode not in ("PROTO", "FRAME"):
            raise self._refusal(f"uses the opcode {opcode}")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("nothing left on the stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _named(self, module: Any, name: Any) -> _Name | np.dtype:
        module, name = _expect(module, str), _expect(name, str)
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if self._script and (module == "__torch__" or module.startswith("__torch__.")):
            return _Name.MODULE
        if self._script and (module, name) in _SCRIPT_NAMES:
            return _SCRIPT_NAMES[module, name]
        raise self._refusal(f"asks for {module + '.' + name!r}")

    def _storage(self, kind: Any, dtype: Any, key: Any, device: Any, size: Any, view: Any = None) -> Storage:
        if kind != "storage" or view is not None:
            raise ValueError("an unknown reference to numbers")
        storage = Storage(_expect(key, str), _expect(dtype, np.dtype), _count(size))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError("one storage with two types or sizes")
        return storage

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self._path} is refused, nothing of it was run: it {reason}, which no file of weights needs. {ADVICE}"
        )


def _reduce(name: Any, arguments: Any) -> Any:
    """What a call of one of the names would have made."""
    arguments = _expect(arguments, tuple)
    if name is _Name.DICT:
        made: dict[Any, Any] = {}
        for pairs in arguments:
            _set_items(made, pairs)
        return made
    if name is _Name.PARAMETER:
        return _expect(arguments[0], Tensor)
    if name is _Name.TYPED:
        return arguments[0]
    if name is not _Name.TENSOR:
        raise ValueError("a call of what is no function")
    storage, offset, shape, strides, _, _, *metadata = arguments
    if any(metadata):  # conjugated and negated views
        raise ValueError("a tensor of an unknown kind")
    tensor = Tensor(_expect(storage, Storage), _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))
    # NumPy has at most 64 axes and counts bytes in 63 bits; a damaged shape may have more of both.
    if len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > 32 or math.prod(tensor.shape) >= 2**48:
        raise ValueError("a tensor of an impossible shape")
    return tensor


def _set_items(target: Any, pairs: Iterable[Any]) -> None:
    _expect(target, dict)
    for key, value in pairs:
        if not isinstance(key, str | int):
            raise ValueError("a dict with a key that is no name")
        target[key] = value


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _count(value: Any) -> int:
    if _expect(value, int) < 0:
        raise ValueError(f"{value} where a count belongs")
    return value
