"""The objects of one kind in memory: the latest state that a watch, a list, or the answer to a write has shown."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from finetune_operator.kube.objects import Key

MAX_DELETED = 10_000
"""UIDs of deleted objects that are kept, because an older state of them may still arrive."""


class Item(Protocol):
    """An object of the API server, reduced to what is read."""

    @property
    def uid(self) -> str:
        """The UID."""

    @property
    def version(self) -> int:
        """The resourceVersion; 0 if it cannot be compared."""


T = TypeVar("T", bound=Item)


class Listing:
    """A list in progress; the objects that it has not shown when it ends are deleted."""

    def __init__(self, namespace: str | None) -> None:
        self.namespace = namespace
        self.seen: set[str] = set()


class Mirror(Generic[T]):
    """Objects by UID and by the FineTuneJob that they belong to. Of two states of an object, the newer one stays."""

    def __init__(self) -> None:
        self._items: dict[str, tuple[Key, T]] = {}
        self._uids: dict[Key, dict[str, None]] = {}
        self._deleted: OrderedDict[str, int] = OrderedDict()
        """By UID, the version of the deletion, or 0."""
        self._listings: list[Listing] = []

    def __len__(self) -> int:
        return len(self._items)

    def of(self, key: Key) -> tuple[T, ...]:
        """Return the objects of a job, in the order in which they were first seen."""
        return tuple(self._items[uid][1] for uid in self._uids.get(key, ()))

    def __iter__(self) -> Iterator[T]:
        return iter([item for _, item in self._items.values()])

    def has(self, uid: str, version: int) -> bool:
        """Return whether that state of an object, or a newer one, is known."""
        for listing in self._listings:
            listing.seen.add(uid)
        deleted, known = self._deleted.get(uid), self._items.get(uid)
        if deleted is not None and not 0 < deleted < version:
            return True
        return known is not None and 0 < version <= known[1].version

    def put(self, key: Key, item: T) -> bool:
        """Take a state; return whether it is newer than the known one and differs in what is read."""
        if self.has(item.uid, item.version):
            return False
        known = self._items.get(item.uid)
        self._items[item.uid] = key, item
        self._uids.setdefault(key, {})[item.uid] = None
        return known is None or known[1] != item

    def remove(self, uid: str, version: int = 0) -> bool:
        """Remove a deleted object; return whether it was known.

        It stays removed, except in a state after that version: then only its labels did not match for some time.
        """
        self._deleted[uid] = version
        if len(self._deleted) > MAX_DELETED:
            self._deleted.popitem(last=False)
        return self._drop(uid) is not None

    def drop(self, key: Key) -> None:
        """Drop the objects of a job that is no longer read."""
        for uid in list(self._uids.get(key, ())):
            self._drop(uid)

    def replace(self, key: Key, known: Iterable[T], listed: Iterable[T]) -> None:
        """Take what the API server has just listed of a job; `known` is what was known before the request."""
        shown = list(listed)
        for uid in {one.uid for one in known} - {one.uid for one in shown}:
            self.remove(uid)
        for item in shown:
            self.put(key, item)

    def begin_listing(self, namespace: str | None) -> Listing:
        """Begin a list of a namespace, or of all; what is put before its end is not deleted by it."""
        listing = Listing(namespace)
        self._listings.append(listing)
        return listing

    def end_listing(self, listing: Listing, *, is_complete: bool = True) -> set[Key]:
        """Remove what a complete list has not shown; return the jobs that lost an object."""
        self._listings.remove(listing)
        missing = [
            uid
            for uid, (key, _) in self._items.items()
            if is_complete and uid not in listing.seen and listing.namespace in {None, key.namespace}
        ]
        return {key for uid in missing if (key := self._drop(uid))}

    def _drop(self, uid: str) -> Key | None:
        found = self._items.pop(uid, None)
        if found is None:
            return None
        key = found[0]
        self._uids[key].pop(uid, None)
        if not self._uids[key]:
            del self._uids[key]
        return key
