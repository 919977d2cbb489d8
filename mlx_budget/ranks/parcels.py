"""What a rank sends to another: values as bytes, and names of what both have.

A model is never sent: each rank has its own part of it, known by the same name on all.
Knows pickles; nothing of processes.
"""

import io
import pickle
import weakref
from typing import Any


class Parcels:
    """Packs values, and unpacks them where the other ranks do.

    Objects that were named (`name`) are sent as their names. An object of a class with
    ``is_on_every_rank`` is named when it is first sent, and made there, empty, when
    that arrives: its ``__init__`` has to be a mirrored call.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._objects: dict[str, Any] = {}
        self._number = 0
        # Names of objects that are gone here, for the others to let go of.
        self.gone: list[str] = []

    def name(self, name: str, value: Any, keep: bool) -> None:
        """Gives an object a name, which another may have had.

        Args:
            name (str): The same on all ranks.
            value: The object.
            keep (bool): Whether to keep it alive; else it is named as long as it is.
        """
        self._objects[name] = value if keep else weakref.ref(value)
        self._names[id(value)] = name
        if not keep:
            weakref.finalize(value, self._forget, id(value), name)

    def drop(self, name: str) -> None:
        """Lets go of a named object."""
        self._objects.pop(name, None)

    def pack(self, value: Any) -> bytes:
        """A value as bytes.

        Raises:
            Exception: Whatever a value that cannot be sent makes `pickle` raise.
        """
        file = io.BytesIO()
        pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = self._name_of  # type: ignore[method-assign]
        pickler.dump(value)
        return file.getvalue()

    def unpack(self, data: bytes, own: Any = None) -> Any:
        """The value of some bytes.

        Args:
            data (bytes): As `pack` made them on another rank.
            own: The object that stands for the one that is sent, if it is new here.
        """
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = lambda named: self._find(  # type: ignore
            *named, own=own
        )
        return unpickler.load()

    def _name_of(self, value: Any) -> tuple[str, type | None] | None:
        is_made_there = getattr(type(value), "is_on_every_rank", False)
        # The class of a model may be one that was made for it, which cannot be sent.
        kind = type(value) if is_made_there else None
        name = self._names.get(id(value))
        if name is not None and self._value(name) is value:
            return name, kind
        if kind is None:
            return None
        self._number += 1
        name = f"{kind.__name__} {self._number}"
        self.name(name, value, keep=False)
        return name, kind

    def _find(self, name: str, kind: Any, own: Any) -> Any:
        found = self._value(name)
        if found is None:
            if kind is None:
                raise LookupError(f"This rank has no {name}.")
            found = kind.__new__(kind) if own is None else own
            self.name(name, found, keep=own is None)
        return found

    def _value(self, name: str) -> Any:
        value = self._objects.get(name)
        return value() if isinstance(value, weakref.ref) else value

    def _forget(self, identity: int, name: str) -> None:
        if self._names.get(identity) == name:
            del self._names[identity]
        self.gone.append(name)
