"""The request and response bodies of the users' endpoints."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, EmailStr, Field, Secret

LowercaseEmail = Annotated[EmailStr, AfterValidator(str.lower)]
EMAIL_MAX_LENGTH = 254
PASSWORD_MAX_LENGTH = 128  # so that nobody makes the service hash a megabyte
IN_DOCUMENT = {"format": "password", "writeOnly": True}


class UserCreate(BaseModel):
    """A sign-up."""

    email: Annotated[LowercaseEmail, Field(max_length=EMAIL_MAX_LENGTH)]
    password: Secret[
        Annotated[
            str,
            Field(min_length=12, max_length=PASSWORD_MAX_LENGTH, json_schema_extra=IN_DOCUMENT),
        ]
    ]


class LogIn(BaseModel):
    """A log-in, with the field names of RFC 6749."""

    grant_type: Literal["password"] = "password"
    username: Annotated[str, Field(max_length=EMAIL_MAX_LENGTH)]
    password: Secret[
        Annotated[str, Field(max_length=PASSWORD_MAX_LENGTH, json_schema_extra=IN_DOCUMENT)]
    ]


class UserRead(BaseModel):
    """An account, as its owner sees it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    created_at: datetime


class Token(BaseModel):
    """An access token, with the field names of RFC 6750."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
