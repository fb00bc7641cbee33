"""What a pickle of tables can do to its reader although nothing that it names is called: found before it is read.

A tuple as the key of a dictionary is hashed with all that is in it. One of twice the tuple before it, forty times over, takes 200 bytes
and hours, and one in one in one, a million times, ends the process. A length or a number of the memo may ask for terabytes.
Imports no torch.
"""

from __future__ import annotations

import pickle

MOST_NESTED = 10_000
"""Values in a tuple and in the tuples in it, each as often as it is referred to. The state of Python's random numbers has 629."""


def _codes(*names: str) -> list[int]:
    return [getattr(pickle, name)[0] for name in names]


_MEMOIZE, _BINGET, _LONG_BINGET, _BINPUT, _LONG_BINPUT = _codes("MEMOIZE", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT")
_MARK, _TUPLE, _TUPLE1, _TUPLE2, _TUPLE3 = _codes("MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
_STOP, _FRAME, _PROTO, _GLOBAL, _DUP, _POP = _codes("STOP", "FRAME", "PROTO", "GLOBAL", "DUP", "POP")
# bytes of an operation that pushes one value
_PUSHES = [0] * 256
for _name, _size in {
    "NONE": 1, "NEWTRUE": 1, "NEWFALSE": 1, "EMPTY_DICT": 1, "EMPTY_LIST": 1, "EMPTY_TUPLE": 1, "EMPTY_SET": 1,
    "BININT1": 2, "BININT2": 3, "BININT": 5, "BINFLOAT": 9,
}.items():  # fmt: skip
    _PUSHES[getattr(pickle, _name)[0]] = _size
# bytes of the length behind an operation that pushes a text, bytes or a number
_LENGTHS = [0] * 256
for _name, _size in {
    "SHORT_BINUNICODE": 1, "BINUNICODE": 4, "BINUNICODE8": 8, "SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "SHORT_BINSTRING": 1,
    "BINSTRING": 4, "LONG1": 1,
}.items():  # fmt: skip
    _LENGTHS[getattr(pickle, _name)[0]] = _size
# (values taken, value that is left: 1 a new one, -1 the last one taken, 0 none), one byte each
_TAKES: list[tuple[int, int] | None] = [None] * 256
for _name, _taken in {
    "SETITEM": (2, 0), "APPEND": (1, 0), "BUILD": (1, 0), "STACK_GLOBAL": (2, 1), "BINPERSID": (1, 1),
    # what is made of a tuple may hash as that does: torch.Size, slice
    "REDUCE": (2, -1), "NEWOBJ": (2, -1),
}.items():  # fmt: skip
    _TAKES[getattr(pickle, _name)[0]] = _taken
# whether one value is left of all since the mark
_TAKES_MARKED: list[bool | None] = [None] * 256
for _code in _codes("SETITEMS", "APPENDS", "ADDITEMS", "POP_MARK"):
    _TAKES_MARKED[_code] = False
for _code in _codes("DICT", "LIST", "FROZENSET"):
    _TAKES_MARKED[_code] = True


def check_pickle(data: bytes) -> None:
    """Raises UnpicklingError for a pickle that nests too much, asks for more than it holds, or has operations of no checkpoint."""
    try:
        _check(data)
    except (IndexError, KeyError, ValueError):
        raise pickle.UnpicklingError("cut short, or damaged") from None


def _check(data: bytes) -> None:
    # of each value on the stack its values, as MOST_NESTED counts them
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    push, pop, end, at = stack.append, stack.pop, len(data), 0
    while True:
        operation = data[at]
        if operation == _MEMOIZE:
            memo[len(memo)] = stack[-1]
            at += 1
        elif operation == _BINGET:
            push(memo[data[at + 1]])
            at += 2
        elif operation == _LONG_BINGET:
            push(memo[int.from_bytes(data[at + 1 : at + 5], "little")])
            at += 5
        elif size := _PUSHES[operation]:
            push(1)
            at += size
        elif _TUPLE1 <= operation <= _TUPLE3:
            count = 1 + pop()
            for _ in range(operation - _TUPLE1):
                count += pop()
            if count > MOST_NESTED:
                raise pickle.UnpicklingError("tuples that are nested too deeply")
            push(count)
            at += 1
        elif operation == _MARK:
            marks.append(len(stack))
            at += 1
        elif (taken := _TAKES[operation]) is not None:
            count = pop()
            if taken[0] == 2:
                pop()
            if taken[1]:
                push(1 if taken[1] == 1 else count)
            at += 1
        elif (left := _TAKES_MARKED[operation]) is not None:
            del stack[marks.pop() :]
            if left:
                push(1)
            at += 1
        elif size := _LENGTHS[operation]:
            length = int.from_bytes(data[at + 1 : at + 1 + size], "little")
            if length > end - at:
                raise pickle.UnpicklingError(f"a value of {length:,} bytes, more than there are")
            push(1)
            at += 1 + size + length
        elif operation == _BINPUT:
            memo[data[at + 1]] = stack[-1]
            at += 2
        elif operation == _LONG_BINPUT:
            number = int.from_bytes(data[at + 1 : at + 5], "little")
            if number > end:
                raise pickle.UnpicklingError(f"value {number:,} of the memo, more than there are")
            memo[number] = stack[-1]
            at += 5
        elif operation == _TUPLE:
            first = marks.pop()
            count = 1 + sum(stack[first:])
            if count > MOST_NESTED:
                raise pickle.UnpicklingError("tuples that are nested too deeply")
            del stack[first:]
            push(count)
            at += 1
        elif operation == _FRAME:
            length = int.from_bytes(data[at + 1 : at + 9], "little")
            if length > end - at:
                raise pickle.UnpicklingError(f"a frame of {length:,} bytes, more than there are")
            at += 9
        elif operation == _PROTO:
            at += 2
        elif operation == _GLOBAL:
            at = data.index(b"\n", data.index(b"\n", at) + 1) + 1
            push(1)
        elif operation == _DUP:
            push(stack[-1])
            at += 1
        elif operation == _POP:
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                pop()
            at += 1
        elif operation == _STOP:
            return
        else:
            raise pickle.UnpicklingError(f"the operation {operation:#x}, which no checkpoint has")
