"""Update the objects that a test holds when the application commits changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import event, inspect
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapper,
    ORMExecuteState,
    QueryContext,
    RelationshipDirection,
    RelationshipProperty,
    Session,
    UOWTransaction,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.collections import collection_adapter

from tests.harness.guard import listening


@contextmanager
def kept_up_to_date(session: AsyncSession) -> Iterator[None]:
    """Show the changes that other sessions commit in the objects of `session`.

    This executes no query, so it costs the same for any number of objects. Only the database knows
    what an UPDATE, a trigger or a cascade changes: execute a SELECT in `session`, or
    `await session.refresh(...)`. A SELECT that does not load related objects keeps them, but a
    collection only until another session commits.
    """
    changes = Changes(session)
    event.listen(session.sync_session, "do_orm_execute", changes.overwrite_known_objects)
    listeners: dict[str, Callable[..., None]] = {
        "after_flush": changes.collect,
        "after_commit": changes.show,
        "after_rollback": changes.forget,
    }
    with listening(Session, listeners):
        yield


RELATED = "related objects, from before a SELECT"


@event.listens_for(Mapper, "refresh")
def keep_related(instance: object, context: QueryContext, _: object) -> None:
    """Restore the related objects that a SELECT has unloaded, if they are still the right ones.

    A SELECT unloads them from all objects that it overwrites; async code cannot lazy-load them.
    """
    state = inspect(instance, raiseerr=True)
    for relationship, related in context.session.info.get(RELATED, {}).get(state, {}).items():
        if relationship.key not in state.dict and still_refers(state, relationship, related):
            set_committed_value(instance, relationship.key, related)


def related_objects(state: InstanceState[Any]) -> dict[RelationshipProperty[Any], Any]:
    """Return the related objects that are loaded or set on an object."""
    return {
        relationship: list(collection_adapter(related)) if relationship.uselist else related
        for relationship in state.mapper.relationships
        if (related := state.dict.get(relationship.key, LoaderCallableStatus.NO_VALUE))
        is not LoaderCallableStatus.NO_VALUE
    }


def still_refers(
    state: InstanceState[Any], relationship: RelationshipProperty[Any], related: Any
) -> bool:
    """Return whether the foreign key of an object still refers to its related object."""
    if relationship.direction is not RelationshipDirection.MANYTOONE:
        return True
    values = vars(related) if related else {}  # without loading what is expired
    return all(
        state.dict.get(state.mapper.get_property_by_column(local).key)
        == values.get(relationship.mapper.get_property_by_column(remote).key)
        for local, remote in relationship.local_remote_pairs
    )


class Changes:
    """The uncommitted changes of other sessions."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._values: WeakKeyDictionary[Session, dict[Any, dict[str, Any]]] = WeakKeyDictionary()
        self._deleted: WeakKeyDictionary[Session, set[Any]] = WeakKeyDictionary()
        self._others_have_committed = False

    def overwrite_known_objects(self, execution: ORMExecuteState) -> None:
        """Let a SELECT update objects that the session already knows."""
        session = execution.session
        is_loading = execution.is_column_load or execution.is_relationship_load
        if not execution.is_select or is_loading or not session.autoflush:
            return  # without autoflush, it would overwrite changes that are not flushed
        execution.update_execution_options(populate_existing=True)
        session.info[RELATED] = {
            state: {
                relationship: related
                for relationship, related in related_objects(state).items()
                if not (relationship.uselist and self._others_have_committed)
            }
            for state in (*session.identity_map.all_states(), *map(inspect, session.new))
        }

    def collect(self, session: Session, _: UOWTransaction) -> None:
        """Collect the changes of `session`."""
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
        """Show the test what `session` has committed."""
        known = self._session.identity_map
        self._others_have_committed |= session is not self._session.sync_session
        for key, values in self._values.pop(session, {}).items():
            for name, value in values.items():
                if key in known:
                    set_committed_value(known[key], name, value)
        for key in self._deleted.pop(session, ()):
            if key in known:
                self._session.expunge(known[key])

    def forget(self, session: Session) -> None:
        """Drop the changes that `session` has rolled back."""
        self._values.pop(session, None)
        self._deleted.pop(session, None)
