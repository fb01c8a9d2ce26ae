"""The objects that a test holds show what the application has made of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session, UOWTransaction
from sqlalchemy.orm.attributes import set_committed_value

from tests.harness.guard import listening


@contextmanager
def kept_up_to_date(session: AsyncSession) -> Iterator[None]:
    """Show in the objects of `session` what other sessions change in theirs and commit.

    Nothing is read for that, so it costs nothing however many objects there are. What an UPDATE,
    a trigger or a cascade changes, only the database knows: a SELECT of `session` brings it, or
    `await session.refresh(...)`.
    """
    changes = Changes(session)
    event.listen(session.sync_session, "do_orm_execute", overwrite_known_objects)
    listeners: dict[str, Callable[..., None]] = {
        "after_flush": changes.collect,
        "after_commit": changes.show,
        "after_rollback": changes.forget,
    }
    with listening(Session, listeners):
        yield


def overwrite_known_objects(state: ORMExecuteState) -> None:
    """Let a SELECT bring objects that the session knows already up to date."""
    is_of_the_test = state.is_select and not state.is_column_load and not state.is_relationship_load
    if is_of_the_test and state.session.autoflush:  # or it would overwrite what is not flushed
        state.update_execution_options(populate_existing=True)


class Changes:
    """What the sessions of others have written and not committed yet."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._values: WeakKeyDictionary[Session, dict[Any, dict[str, Any]]] = WeakKeyDictionary()
        self._deleted: WeakKeyDictionary[Session, set[Any]] = WeakKeyDictionary()

    def collect(self, session: Session, _: UOWTransaction) -> None:
        """Note what `session` writes."""
        if session is self._session.sync_session:
            return
        values = self._values.setdefault(session, {})
        for instance in session.dirty:
            state = inspect(instance)
            columns = {attribute.key for attribute in state.mapper.column_attrs}
            values[state.identity_key] = {
                name: value for name, value in state.dict.items() if name in columns
            }
        deleted = self._deleted.setdefault(session, set())
        deleted.update(inspect(instance).identity_key for instance in session.deleted)

    def show(self, session: Session) -> None:
        """Let the test see what `session` has committed."""
        known = self._session.identity_map
        for key, values in self._values.pop(session, {}).items():
            for name, value in values.items():
                if key in known:
                    set_committed_value(known[key], name, value)
        for key in self._deleted.pop(session, ()):
            if key in known:
                self._session.expunge(known[key])

    def forget(self, session: Session) -> None:
        """Drop what `session` has rolled back."""
        self._values.pop(session, None)
        self._deleted.pop(session, None)
