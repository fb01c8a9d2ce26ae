"""What goes in and out of the users' endpoints."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, SecretStr

LowercaseEmail = Annotated[EmailStr, AfterValidator(str.lower)]


class UserCreate(BaseModel):
    """A sign-up."""

    email: Annotated[LowercaseEmail, Field(max_length=254)]
    password: Annotated[SecretStr, Field(min_length=12, max_length=128)]


class UserRead(BaseModel):
    """An account, as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    created_at: datetime


class Token(BaseModel):
    """An access token, as RFC 6750 wants it named."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
