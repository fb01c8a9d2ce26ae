"""Dependencies that any endpoint can use, besides the session."""

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from app.core.database import core_state
from app.settings import Settings


async def get_settings(connection: HTTPConnection) -> Settings:
    """Return the settings of the application."""
    settings: Settings = core_state(connection).settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_settings)]
