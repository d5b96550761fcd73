"""Check what a pickle of weights or of a checkpoint names, calls and copies, before torch builds any of it.

torch's own reader (``weights_only=True``) runs no code, but it builds whatever the file describes: one number allocates
2 GB, a list of 10,000 numbers is copied into 10,000 sets, or the hash of a key of a million nested tuples ends the
process. This module reads the same pickle with stand-ins for all names in it, and refuses what torch, Lightning and
fcnlab do not write.
"""

import pickle
from collections.abc import Callable, Collection
from typing import IO, Any, ClassVar

import torch

from fcnlab.library_internals.python import PythonUnpickler
from fcnlab.library_internals.torch import storage_item_bytes

SIZE = 64 << 20  # bytes; a ResNet-101 with two moments has 164 kB
READS = 1_000_000  # reads of a part; the same file needs 94,000
COPIED = 500_000  # values and characters that all calls take; those of the same file take 16,000
KEY = 100  # values in a tuple that is a key
DTYPES = {str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
STORAGES = {f"torch.{name}" for name in vars(torch) if name.endswith("Storage")}
MENTIONED = {*DTYPES, *STORAGES, *(name.replace("torch.", "torch.cuda.") for name in STORAGES)}
MENTIONED |= {"torch.storage.UntypedStorage", "torch.storage.TypedStorage"}  # to call them takes memory by a number
MAPS = {"collections.OrderedDict", "collections.Counter"}
SETS, NUMBERS = ({f"{module}.{name}" for module in ("builtins", "__builtin__")} for name in ("set", "complex"))
BYTES = "_codecs.encode"
TENSORS = {f"torch._utils._rebuild_{name}" for name in ("tensor", "tensor_v2", "tensor_v3", "parameter")}
TENSORS |= {"torch._utils._rebuild_meta_tensor_no_storage", "torch.Size", "torch.device"}
CALLED = {*MAPS, *SETS, *NUMBERS, BYTES, *TENSORS}
OPCODES = b"".join(  # all that torch reads, without those that make sets by themselves and objects of any class
    getattr(pickle, name)
    for name in (
        *("PROTO", "STOP", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "MARK", "BINGET", "LONG_BINGET"),
        *("BINPUT", "LONG_BINPUT", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
    )
)


def check_pickle(file: IO[bytes], inert: Collection[str] = ()) -> tuple[Any, dict[Any, int]]:
    """Read one pickle, up to its end; ``inert`` are names for which the reader has stand-ins that do nothing.

    Returns its value, with stand-ins for all that it names, and the bytes of each storage, by the storage's key.

    Raises
    ------
    pickle.UnpicklingError
        It is none, it is damaged, or it names, calls or copies what no file of torch's does.
    """
    try:
        rehearsal = _Rehearsal(_Beginning(file), inert)
        return rehearsal.load(), rehearsal.storages
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # damaged ones end in a dozen kinds; torch must not get further than this does
        raise pickle.UnpicklingError("it is no pickle that torch writes, or a damaged one") from error


class _Beginning:
    """The first bytes of a file; an error for whoever reads on."""

    def __init__(self, file: IO[bytes]):
        self._file, self._bytes, self._reads = file, SIZE, READS

    def read(self, size: int) -> bytes:
        return self._counted(self._file.read(min(size, self._bytes + 1)))

    def readline(self) -> bytes:
        return self._counted(self._file.readline(self._bytes + 1))

    def _counted(self, data: bytes) -> bytes:
        self._bytes -= len(data)
        self._reads -= 1
        if self._bytes < 0 or self._reads < 0:
            raise pickle.UnpicklingError(f"it has more than {SIZE:,} bytes or {READS:,} values beside its numbers")
        return data


class _Named(str):
    """What the file names, such as a function."""


class _Made(dict):
    """What a call makes; with keys, where it has some."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __init__(self, name: str, *held: Any):
        super().__init__(*held)
        self.name = name


class _Rehearsal(PythonUnpickler):
    """Python's own reader, since the one in C takes memory by a number itself: the place of a value in its memo."""

    stack: list[Any]  # Python's, which its stubs do not name
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, inert: Collection[str]):
        super().__init__(file, encoding="bytes")
        self._inert, self._copied = inert, 0
        self.storages: dict[Any, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in MENTIONED and full not in CALLED and full not in self._inert:
            raise pickle.UnpicklingError(f"it names {full!r:.80}")
        return _Named(full)

    def persistent_load(self, pid: Any) -> Any:
        for part in pid:
            _check_key(part)
        kind, storage, key, _, count = pid[:5]
        if type(pid) is not tuple or kind not in ("storage", b"storage") or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("it describes its numbers as torch does not")
        size = count * storage_item_bytes(storage.rpartition(".")[2])
        if self.storages.setdefault(key, size) != size:  # torch would make one of the sizes, and leave it unread
            raise pickle.UnpicklingError("it gives one storage two sizes")
        return _Made("storage")

    def load_reduce(self) -> None:
        values = self.stack.pop()
        name = self.stack[-1]
        if not isinstance(name, _Named) or name in MENTIONED or type(values) is not tuple:
            raise pickle.UnpicklingError(f"it calls {name!r:.80}")
        self._count(values, *values)
        self.stack[-1] = _result(name, *values)

    def load_build(self) -> None:
        state = self.stack.pop()
        made = self.stack[-1]
        if not isinstance(made, _Made) or not (made.name in self._inert or (made.name in MAPS and type(state) is dict)):
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}")
        self._count(state)

    def load_setitem(self) -> None:
        self._set_items([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        for key in items[::2]:
            _check_key(key)
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _count(self, *copied: Any) -> None:
        self._copied += sum(len(value) for value in copied if hasattr(value, "__len__"))
        if self._copied > COPIED:
            raise pickle.UnpicklingError(f"it copies more than {COPIED:,} values")

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: PythonUnpickler.dispatch[code] for code in OPCODES},
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


def _check_key(key: Any) -> None:
    """Refuse keys whose hash takes long, or ends the process, and those that can be made to have equal hashes."""
    parts = key if type(key) is tuple else (key,)
    nested = any(isinstance(part, (tuple, list)) for part in parts)
    if nested or len(parts) > KEY or any(isinstance(part, int) and abs(part) >> 64 for part in parts):
        raise pickle.UnpicklingError(
            f"it has a key of nested tuples, of more than {KEY} values or of a number beyond 64 bits"
        )


def _result(name: str, *values: Any) -> Any:
    """What a call makes, as far as it matters for what is done with it."""
    if name in MAPS:
        held = values[0] if values else {}
        for key in held if isinstance(held, dict) else (pair[0] for pair in held):
            _check_key(key)
        return _Made(name, held)
    if name in SETS:
        for key in values[0]:
            _check_key(key)
        return _Made(name, dict.fromkeys(values[0]))
    if name in NUMBERS:
        return complex(*map(float, values))
    if name == BYTES:
        text, encoding = values
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"it encodes text as {encoding!r:.20}")
        return text.encode("latin1")
    return _Made(name)
