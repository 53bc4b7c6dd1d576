from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response, status
from fastapi.responses import StreamingResponse

from features.items import handlers
from features.items.content_negotiation import (
    EXPORT_OPENAPI,
    IMPORT_OPENAPI,
    ExportFormat,
    ImportEncoding,
    ImportFormat,
)
from features.items.formats import Format, parse_rows, write_items
from features.items.formats.file_limits import limit_rows, limit_size
from features.items.formats.gzip import MAX_RATIO, gunzip
from features.items.quota import Quota, text_bytes_of
from features.items.schemas import (
    ImportReport,
    ItemCreate,
    ItemPage,
    ItemPublic,
    ItemQuery,
    ItemUpdate,
    Usage,
)
from features.items.settings import ItemsSettings
from shared.auth import ConfirmAccess, Principal, requires
from shared.db import ReadSession, SnapshotSession, WriteSession, database_of
from shared.problems import (
    BadRequest,
    Conflict,
    NotAcceptable,
    RequestTimeout,
    responses,
)
from shared.state import resource, settings_of
from shared.web.conditional import (
    CREATED_RESPONSE,
    ConditionalGet,
    IfMatch,
    created,
    tagged,
)
from shared.web.idempotency import Idempotency
from shared.web.pagination import Pages
from shared.web.uploads import Upload

router = APIRouter(prefix="/items", tags=["items"])

Reader = Annotated[Principal, requires("items:read")]
Writer = Annotated[Principal, requires("items:write")]
QuotaDep = Annotated[Quota, resource(Quota)]
MAX_IMPORT_BYTES = 1 << 50  # the settings bound it, decompressed


@router.get("")
async def list_(
    principal: Reader,
    query: Annotated[ItemQuery, Query()],
    session: ReadSession,
    pages: Pages,
) -> ItemPage:
    """Your items, a page at a time."""
    page = await handlers.list_items(session, pages, principal.user_id, query)
    return ItemPage.model_validate(page)


@router.get(
    "/{item_id:uuid}",
    response_model=ItemPublic,
)
async def get(
    item_id: UUID,
    principal: Reader,
    session: ReadSession,
    conditional: ConditionalGet,
) -> ItemPublic | Response:
    """One item."""
    item = await handlers.get_item(session, principal.user_id, item_id)
    return conditional.answer(item)


@router.post(
    "",
    status_code=status.HTTP_201_CREATED,
    response_model=ItemPublic,
    responses=CREATED_RESPONSE,
)
async def create(
    new: ItemCreate,
    request: Request,
    principal: Writer,
    session: WriteSession,
    quota: QuotaDep,
    idempotency: Idempotency,
) -> Response:
    """Adds an item."""
    item = await handlers.create_item(session, principal.user_id, new)
    await quota.check(session, principal.user_id, items=1, text_bytes=text_bytes_of(new))
    return await idempotency.store(created(request, item))


@router.patch(
    "/{item_id:uuid}",
    responses=responses(Conflict),
)
async def update(
    item_id: UUID,
    changes: ItemUpdate,
    response: Response,
    principal: Writer,
    session: WriteSession,
    quota: QuotaDep,
    if_match: IfMatch = None,
) -> ItemPublic:
    """Changes the fields that are given, and leaves the rest."""
    item = await handlers.update_item(session, principal.user_id, item_id, changes, if_match)
    await quota.check(session, principal.user_id, items=0, text_bytes=text_bytes_of(changes))
    return tagged(response, item)


@router.delete(
    "/{item_id:uuid}",
    status_code=status.HTTP_204_NO_CONTENT,
)
async def delete(
    item_id: UUID, principal: Writer, session: WriteSession, if_match: IfMatch = None
) -> None:
    """Deletes an item."""
    await handlers.delete_item(session, principal.user_id, item_id, if_match)


@router.post(
    "/import",
    responses=responses(BadRequest, Conflict, RequestTimeout),
    max_body_size=MAX_IMPORT_BYTES,
    openapi_extra=IMPORT_OPENAPI,
)
async def import_(
    principal: Writer,
    format_: ImportFormat,
    gzipped: ImportEncoding,
    request: Request,
    body: Upload,
    quota: QuotaDep,
    confirm_access: ConfirmAccess,
    dry_run: Annotated[bool, Query(description="Report what would happen, change nothing")] = False,
) -> ImportReport:
    """Adds or replaces items from JSON Lines or CSV, by `external_id`.

    Rows that are not valid are reported with their line number and left out; all others are taken
    as if one by one, but in one transaction, once the whole body has come. An empty cell of CSV is
    no value. A row of an export, whose `id` is that of one of your items, is that item, and gives
    it its `external_id` if it has none; any other `id` stands for the `external_id`, if that field
    is missing.
    """
    database, limits = database_of(request.app), settings_of(request.app, ItemsSettings)
    max_size, max_rows = limits.max_import_size, limits.max_import_rows
    body = limit_size(body, max_size, max_rows)
    if gzipped:
        body = limit_size(gunzip(body, MAX_RATIO), max_size, max_rows)
    rows = limit_rows(parse_rows(body, format_), max_rows, limits.max_import_errors)
    return await handlers.import_items(
        database,
        principal.user_id,
        rows,
        dry_run=dry_run,
        quota=quota,
        confirm_access=confirm_access,
    )


@router.get("/usage")
async def usage(principal: Reader, session: ReadSession, quota: QuotaDep) -> Usage:
    """How much you have stored, and the most that you may."""
    return await quota.usage(session, principal.user_id)


@router.get(
    "/export",
    response_class=StreamingResponse,
    responses={**responses(NotAcceptable), **EXPORT_OPENAPI},
)
async def export(
    principal: Reader, format_: ExportFormat, session: SnapshotSession
) -> StreamingResponse:
    """All your items as a stream, oldest first: JSON Lines, or CSV if `Accept` says so.

    CSV has an empty cell for a missing value, and for an empty description. They are the items
    of one moment, if they are read within `X-Snapshot-Seconds`; a slower client gets the rest as
    they are then, none twice.
    """
    batches = handlers.export_items(session, principal.user_id)
    suffix = "csv" if format_ is Format.CSV else "jsonl"
    return StreamingResponse(
        write_items(batches, format_),
        media_type=format_.value,
        headers={
            "Content-Disposition": f'attachment; filename="items.{suffix}"',
            "Vary": "Accept",
            "X-Snapshot-Seconds": f"{session.seconds:g}",
        },
    )
