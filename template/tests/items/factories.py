"""Items for tests, with made-up content."""

from polyfactory import Require, Use
from polyfactory.factories.sqlalchemy_factory import SQLAlchemyFactory

from app.items.models import Item, Tag


class ItemFactory(SQLAlchemyFactory[Item]):
    """Creates items. A test names the owner: `await item_factory.create_async(owner_id=...)`."""

    __random_seed__ = 1
    __set_primary_key__ = False  # the database counts: random ids would collide

    owner_id = Require()
    # polyfactory would give each tag an item, which would have tags, and so on.
    tags = Use(list[Tag])
