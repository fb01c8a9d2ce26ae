"""The jobs of items."""

from app.core.jobs import JobContext, job
from app.items.feed import delete_old_events


@job(schedule="0 3 * * *")
async def delete_old_item_events(context: JobContext) -> None:
    """Delete old events every night."""
    await delete_old_events(context.session_factory)
