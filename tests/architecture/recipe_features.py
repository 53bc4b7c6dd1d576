# ruff: noqa: E501  # the lines of the files are indented here
"""`albums`, a feature with the shapes of the recipes in CONTRIBUTING.md, which quotes it.

It has lists in queries, converted columns, uploads, a resource with children, a table that all
accounts share, publications that need no account, a websocket and a stream of events.
"""

ALBUMS = {
    "features/albums/__init__.py": '''
        """Albums of an account, which it may publish."""

        from features.albums.tables import Album

        __all__ = ["Album"]
    ''',
    "features/albums/feature.py": '''
        """The declaration of albums, for the kernel."""

        from features.albums.handlers import delete_all_albums
        from features.albums.router import router
        from features.users import account_changes
        from shared.db.changes import Subscription
        from shared.feature import Feature
        from shared.problems import Conflict, Unprocessable

        feature = Feature(
            name="albums",
            router=router,
            depends_on=("users", "items"),
            scopes={"albums:read": "Read your albums", "albums:write": "Add and change albums"},
            constraints={
                "fk_albums_genre": Unprocessable("There is no such genre"),
                "uq_publications_slug": Conflict("This slug is taken"),
            },
            subscriptions=(Subscription(account_changes, delete_all_albums, outbox="albums_accounts"),),
        )
    ''',
    "features/albums/tables.py": '''
        """The tables of albums. Genres are everybody's."""

        from datetime import timedelta
        from enum import StrEnum
        from uuid import UUID

        from sqlalchemy import Enum, ForeignKeyConstraint, Index, String, UniqueConstraint
        from sqlalchemy.dialects.postgresql import ARRAY
        from sqlmodel import Column, Field, SQLModel

        from shared.db.tables import Timestamped, table_of, uuid7


        class Format(StrEnum):
            VINYL = "vinyl"
            CASSETTE = "cassette"


        FORMAT = Enum(Format, native_enum=False, length=20)


        class Genre(SQLModel, table=True):
            """Belongs to no account: its rows come with a migration, and everybody reads them."""

            __tablename__ = "genres"

            name: str = Field(primary_key=True)


        class Album(Timestamped, table=True):
            __tablename__ = "albums"
            __table_args__ = (Index("ix_albums_owner_created", "owner_id", "created_at", "id"),)

            owner_id: UUID = Field(primary_key=True)
            id: UUID = Field(default_factory=uuid7, primary_key=True)
            title: str
            genre: str = Field(foreign_key="genres.name")
            format: Format = Field(sa_column=Column(FORMAT, nullable=False))
            length: timedelta
            tags: list[str] = Field(sa_column=Column(ARRAY(String), nullable=False))
            item_id: UUID | None = None


        class Track(SQLModel, table=True):
            __tablename__ = "tracks"
            __table_args__ = (
                ForeignKeyConstraint(
                    ["owner_id", "album_id"], ["albums.owner_id", "albums.id"], ondelete="CASCADE"
                ),
            )

            owner_id: UUID = Field(primary_key=True)
            album_id: UUID = Field(primary_key=True)
            position: int = Field(primary_key=True)
            title: str


        class Publication(SQLModel, table=True):
            """What an account lets everybody read: never the private row itself."""

            __tablename__ = "publications"
            __table_args__ = (UniqueConstraint("slug"),)

            publisher_id: UUID = Field(primary_key=True)
            album_id: UUID = Field(primary_key=True)
            slug: str


        GENRES = table_of(Genre)
        ALBUMS = table_of(Album)
        TRACKS = table_of(Track)
        PUBLICATIONS = table_of(Publication)
    ''',
    "features/albums/schemas.py": '''
        """What albums look like to clients."""

        from datetime import datetime, timedelta
        from typing import Annotated
        from uuid import UUID

        from pydantic import BaseModel, ConfigDict, Field
        from pydantic.config import JsonDict

        from features.albums.tables import Format
        from shared.types import JSON_NUMBER, DatabaseText
        from shared.web.pagination import Page, PageQuery, Sort

        Title = Annotated[DatabaseText, Field(min_length=1, max_length=200)]
        Tag = Annotated[DatabaseText, Field(min_length=1, max_length=50)]
        Slug = Annotated[str, Field(pattern="^[a-z0-9-]+$", max_length=50)]
        EXAMPLE: JsonDict = {"title": "Kind of Blue", "genre": "jazz", "format": "vinyl", "minutes": 45}


        class AlbumCreate(BaseModel):
            model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

            title: Title
            genre: DatabaseText
            format: Format
            minutes: Annotated[int, Field(ge=1, le=300), JSON_NUMBER]
            tags: Annotated[list[Tag], Field(max_length=20)] = []
            item_id: UUID | None = None


        class AlbumSummary(BaseModel):
            id: UUID
            title: str
            genre: str
            format: Format
            length: timedelta
            tags: list[str]
            item_id: UUID | None
            created_at: datetime
            updated_at: datetime


        class TrackCreate(BaseModel):
            model_config = ConfigDict(
                extra="forbid", json_schema_extra={"examples": [{"title": "So What"}]}
            )

            title: Title


        class AlbumPublic(AlbumSummary):
            tracks: list[str]


        class AlbumSort(Sort):
            CREATED_AT = "created_at"


        class AlbumQuery(PageQuery):
            tag: Annotated[list[Tag] | None, Field(max_length=10)] = None
            sort: AlbumSort = AlbumSort.CREATED_AT


        class AlbumPage(Page[AlbumSummary]):
            """A page of your albums."""


        class PublicationCreate(BaseModel):
            model_config = ConfigDict(
                extra="forbid", json_schema_extra={"examples": [{"slug": "kind-of-blue"}]}
            )

            slug: Slug


        class PublishedAlbum(BaseModel):
            title: str
            price: float | None


        class Received(BaseModel):
            bytes: int


        class GenreList(BaseModel):
            genres: list[str]
    ''',
    "features/albums/handlers.py": '''
        """The use-cases of albums."""

        from collections.abc import AsyncIterator
        from datetime import timedelta
        from typing import Any
        from uuid import UUID

        from sqlalchemy import String, and_, bindparam, delete, func, select, update
        from sqlalchemy.dialects.postgresql import ARRAY, insert

        from features.albums.schemas import AlbumCreate, AlbumPublic, AlbumQuery, PublishedAlbum
        from features.albums.tables import ALBUMS, GENRES, PUBLICATIONS, TRACKS
        from features.items import Item
        from shared.db import ReadSession, WriteSession
        from shared.db.changes import Change
        from shared.db.tables import delete_owned_rows, table_of, uuid7
        from shared.problems import NotFound
        from shared.web.conditional import check_if_match
        from shared.web.pagination import ListQuery, Pages

        ITEMS = table_of(Item)
        IS_OWNERS = ALBUMS.c.owner_id == bindparam("owner")
        IS_THIS_ALBUM = (IS_OWNERS, ALBUMS.c.id == bindparam("album_id"))
        SELECT_ALBUMS = select(ALBUMS).where(IS_OWNERS)
        SELECT_ALBUM = select(ALBUMS).where(*IS_THIS_ALBUM)
        LOCK_ALBUM = SELECT_ALBUM.with_for_update()
        INSERT_ALBUM = insert(ALBUMS).returning(ALBUMS.c.id)
        TOUCH_ALBUM = update(ALBUMS).where(*IS_THIS_ALBUM)  # which sets updated_at
        SELECT_TRACKS = (
            select(TRACKS.c.title)
            .where(TRACKS.c.owner_id == bindparam("owner"), TRACKS.c.album_id == bindparam("album_id"))
            .order_by(TRACKS.c.position)
        )
        INSERT_TRACK = insert(TRACKS)
        INSERT_PUBLICATION = insert(PUBLICATIONS)
        UPSERT_PUBLICATION = INSERT_PUBLICATION.on_conflict_do_update(
            index_elements=["publisher_id", "album_id"], set_={"slug": INSERT_PUBLICATION.excluded.slug}
        )
        SELECT_PUBLICATION = select(PUBLICATIONS).where(PUBLICATIONS.c.slug == bindparam("slug"))
        DELETE_PUBLICATIONS = delete(PUBLICATIONS).where(
            PUBLICATIONS.c.publisher_id == bindparam("publisher")
        )
        SELECT_PUBLISHED = (
            select(ALBUMS.c.title, ITEMS.c.price)
            .outerjoin_from(
                ALBUMS,
                ITEMS,
                and_(ITEMS.c.owner_id == bindparam("owner"), ITEMS.c.id == ALBUMS.c.item_id),
            )
            .where(*IS_THIS_ALBUM)
        )
        SELECT_GENRES = select(GENRES.c.name).order_by(GENRES.c.name)
        LIST_ALBUMS = ListQuery(
            "albums",
            SELECT_ALBUMS,
            {"tag": ALBUMS.c.tags.overlap(bindparam("tag", type_=ARRAY(String)))},
        )


        async def list_albums(
            session: ReadSession, pages: Pages, owner_id: UUID, query: AlbumQuery
        ) -> dict[str, Any]:
            return await pages.fetch(session, LIST_ALBUMS, query, owner=owner_id)


        async def create_album(session: WriteSession, owner_id: UUID, new: AlbumCreate) -> AlbumPublic:
            length = timedelta(minutes=new.minutes)
            values = new.model_dump(exclude={"minutes"}) | {"length": length}
            values |= {"id": uuid7(), "owner_id": owner_id}
            album_id = await session.fetch_value(INSERT_ALBUM, values)
            return await get_album(session, owner_id, album_id)


        async def get_album(
            session: ReadSession, owner_id: UUID, album_id: UUID, *, lock: bool = False
        ) -> AlbumPublic:
            """
            Raises:
                NotFound: there is no such album, or it is somebody else's.
            """
            values = {"owner": owner_id, "album_id": album_id}
            album = await session.fetch_one(LOCK_ALBUM if lock else SELECT_ALBUM, values)
            if album is None:
                raise NotFound(f"Album {album_id} not found")
            tracks = [row.title for row in await session.fetch(SELECT_TRACKS, values)]
            return AlbumPublic(**dict(album), tracks=tracks)


        async def add_track(
            session: WriteSession, owner_id: UUID, album_id: UUID, title: str, if_match: str | None
        ) -> AlbumPublic:
            """Adds a track, which changes the album."""
            album = await get_album(session, owner_id, album_id, lock=True)
            check_if_match(if_match, album.updated_at)
            position = len(album.tracks) + 1
            track = {"owner_id": owner_id, "album_id": album_id, "position": position, "title": title}
            await session.execute(INSERT_TRACK, track)
            await session.execute(TOUCH_ALBUM, {"owner": owner_id, "album_id": album_id})
            return await get_album(session, owner_id, album_id)


        async def count_bytes(chunks: AsyncIterator[bytes]) -> int:
            return sum([len(chunk) async for chunk in chunks])


        async def publish(session: WriteSession, owner_id: UUID, album_id: UUID, slug: str) -> None:
            await get_album(session, owner_id, album_id)
            values = {"slug": slug, "publisher_id": owner_id, "album_id": album_id}
            await session.execute(UPSERT_PUBLICATION, values)


        async def get_published(session: ReadSession, slug: str) -> PublishedAlbum:
            """
            Raises:
                NotFound: nothing is published there.
            """
            if published := await session.fetch_one(SELECT_PUBLICATION, {"slug": slug}):
                values = {"owner": published.publisher_id, "album_id": published.album_id}
                for album in await session.fetch_as(PublishedAlbum, SELECT_PUBLISHED, values):
                    return album
            raise NotFound(f"Nothing is published at {slug}")


        async def list_genres(session: ReadSession) -> list[str]:
            return [row.name for row in await session.fetch(SELECT_GENRES)]


        async def count_albums(session: ReadSession, owner_id: UUID) -> int:
            count = SELECT_ALBUMS.with_only_columns(func.count(), maintain_column_froms=True)
            return int(await session.fetch_value(count, {"owner": owner_id}))


        async def delete_all_albums(session: WriteSession, deleted: Change) -> int:
            """Deletes a batch of those of a deleted account, and what it has published."""
            await session.execute(DELETE_PUBLICATIONS, {"publisher": deleted.owner_id})
            return await delete_owned_rows(session, ALBUMS, deleted.owner_id)
    ''',
    "features/albums/router.py": '''
        """The routes of albums."""

        import asyncio
        from collections.abc import AsyncIterable
        from typing import Annotated
        from uuid import UUID

        from fastapi import APIRouter, Query, Request, Response, UploadFile, WebSocket, status
        from fastapi.sse import EventSourceResponse

        from features.albums import handlers
        from features.albums.schemas import (
            AlbumCreate,
            AlbumPage,
            AlbumPublic,
            AlbumQuery,
            GenreList,
            PublicationCreate,
            PublishedAlbum,
            Received,
            Slug,
            TrackCreate,
        )
        from shared.auth import Principal, requires
        from shared.db import ReadSession, WriteSession, database_of
        from shared.problems import Conflict, NotFound, RequestTimeout, responses
        from shared.web.conditional import (
            CREATED_RESPONSE,
            ConditionalGet,
            IfMatch,
            created,
            tagged,
        )
        from shared.web.pagination import Pages
        from shared.web.uploads import Upload

        router = APIRouter(tags=["albums"])

        Reader = Annotated[Principal, requires("albums:read")]
        Writer = Annotated[Principal, requires("albums:write")]

        MAX_COVER_BYTES = 5_000_000


        @router.get("/albums")
        async def list_(
            principal: Reader,
            query: Annotated[AlbumQuery, Query()],
            session: ReadSession,
            pages: Pages,
        ) -> AlbumPage:
            """Your albums; with `?tag=a&tag=b` those that have one of the tags."""
            page = await handlers.list_albums(session, pages, principal.user_id, query)
            return AlbumPage.model_validate(page)


        @router.post(
            "/albums",
            status_code=status.HTTP_201_CREATED,
            response_model=AlbumPublic,
            responses=CREATED_RESPONSE,
        )
        async def create(
            new: AlbumCreate, request: Request, principal: Writer, session: WriteSession
        ) -> Response:
            """Adds an album."""
            album = await handlers.create_album(session, principal.user_id, new)
            return created(request, album)


        @router.get("/albums/{album_id:uuid}", response_model=AlbumPublic)
        async def get(
            album_id: UUID, principal: Reader, session: ReadSession, conditional: ConditionalGet
        ) -> AlbumPublic | Response:
            """One album, with its tracks."""
            album = await handlers.get_album(session, principal.user_id, album_id)
            return conditional.answer(album)


        @router.post("/albums/{album_id:uuid}/tracks")
        async def add_track(
            album_id: UUID,
            new: TrackCreate,
            response: Response,
            principal: Writer,
            session: WriteSession,
            if_match: IfMatch = None,
        ) -> AlbumPublic:
            """Adds a track, and returns the album with its new entity tag."""
            album = await handlers.add_track(session, principal.user_id, album_id, new.title, if_match)
            return tagged(response, album)


        @router.put("/albums/{album_id:uuid}/cover", max_body_size=MAX_COVER_BYTES)
        async def put_cover(
            album_id: UUID, cover: UploadFile, principal: Writer, session: WriteSession
        ) -> Received:
            """Replaces the cover."""
            await handlers.get_album(session, principal.user_id, album_id)
            return Received(bytes=len(await cover.read()))


        @router.put(
            "/albums/{album_id:uuid}/recording",
            responses=responses(RequestTimeout),
            max_body_size=1 << 50,
            openapi_extra={"requestBody": {"content": {"audio/flac": {}}}},
        )
        async def put_recording(
            album_id: UUID, principal: Writer, session: ReadSession, body: Upload
        ) -> Received:
            """Receives a recording of any length, chunk by chunk."""
            await handlers.get_album(session, principal.user_id, album_id)
            return Received(bytes=await handlers.count_bytes(body))


        @router.put(
            "/albums/{album_id:uuid}/publication",
            status_code=status.HTTP_204_NO_CONTENT,
            responses=responses(Conflict),
        )
        async def publish(
            album_id: UUID, new: PublicationCreate, principal: Writer, session: WriteSession
        ) -> None:
            """Lets everybody read the album."""
            await handlers.publish(session, principal.user_id, album_id, new.slug)


        @router.get("/published-albums/{slug}", responses=responses(NotFound))
        async def get_published(slug: Slug, session: ReadSession) -> PublishedAlbum:
            """A published album, for everybody."""
            return await handlers.get_published(session, slug)


        @router.get("/genres")
        async def list_genres(principal: Reader, session: ReadSession) -> GenreList:
            """The genres that an album can have."""
            return GenreList(genres=await handlers.list_genres(session))


        @router.get("/albums/events", response_class=EventSourceResponse)
        async def events(principal: Reader, session: ReadSession) -> AsyncIterable[int]:
            """The number of your albums, whenever it has changed."""
            known = None
            while True:
                count = await handlers.count_albums(session, principal.user_id)
                if count != known:
                    yield count
                known = count
                await asyncio.sleep(1)


        @router.websocket("/albums/live")
        async def live(websocket: WebSocket, principal: Writer) -> None:
            await websocket.accept()
            async for title in websocket.iter_text():
                async with database_of(websocket.app).transaction() as session:
                    count = await handlers.count_albums(session, principal.user_id)
                await websocket.send_json({"title": title, "albums": count})
    ''',
    "features/albums/tests/privacy.py": '''
        """What an account has, and what it publishes, for tests/contract/test_privacy.py."""

        from httpx import AsyncClient

        from features.albums.schemas import EXAMPLE


        async def album(client: AsyncClient, mark: str) -> str:
            created = await client.post("/albums", json=EXAMPLE | {"title": mark})
            return str(created.json()["id"])


        async def slug(client: AsyncClient, mark: str) -> str:
            path = f"/albums/{await album(client, mark)}/publication"
            (await client.put(path, json={"slug": mark})).raise_for_status()
            return mark


        OWNED_PARAMETERS = {"album_id": album}
        PUBLISHED_PARAMETERS = {"slug": slug}
        PUBLIC_OPERATIONS = {"GET /published-albums/{slug}"}
        REQUEST_ARGUMENTS = {
            "PUT /albums/{album_id}/cover": {"files": {"cover": b"an image"}},
            "PUT /albums/{album_id}/recording": {"content": b"a recording"},
        }
    ''',
    "features/albums/tests/constraints.py": '''
        """Constraints that no request can violate, for tests/architecture/test_constraints.py."""

        NEVER_VIOLATED = {
            "fk_tracks_owner_id_album_id": "the album is locked while a track is added",
        }
        REFERENCE_TABLES = {"genres": "a few rows, of which each machine of a cluster has a copy"}
    ''',
    "features/albums/tests/contract.py": '''
        """What the API document cannot tell, for tests/contract/test_contract.py."""

        UNDOCUMENTED_ERRORS = {"There is no such genre": "genres are rows"}
        ANY_BODY_ACCEPTED = {"albums_put_recording": "a recording is any bytes"}
    ''',
    "features/albums/tests/test_albums.py": '''
        """Albums have lists in queries, children, uploads, publications and live connections."""

        from typing import Any

        from httpx import AsyncClient

        from features.albums.schemas import EXAMPLE
        from tests.kit import open_events, open_websocket


        async def add(client: AsyncClient, **given: Any) -> Any:
            created = await client.post("/albums", json=EXAMPLE | given)
            assert created.status_code == 201, created.text
            return created


        async def test_converted_columns_come_back_as_they_were_sent(client: AsyncClient) -> None:
            created = (await add(client, tags=["blue"])).json()
            assert (created["format"], created["length"]) == ("vinyl", "PT45M")
            assert (await client.get("/albums")).json()["items"][0]["format"] == "vinyl"


        async def test_a_list_of_tags_is_a_repeated_parameter(client: AsyncClient) -> None:
            for tag in ("blue", "red", "green"):
                await add(client, title=tag, tags=[tag, "colour"])
            found = await client.get("/albums", params={"tag": ["blue", "red"]})
            assert [album["title"] for album in found.json()["items"]] == ["blue", "red"]
            page = (await client.get("/albums", params={"tag": ["colour"], "limit": 2})).json()
            query = {"tag": ["colour"], "limit": 2, "cursor": page["next_cursor"]}
            rest = await client.get("/albums", params=query)
            assert [album["title"] for album in rest.json()["items"]] == ["green"]


        async def test_a_new_track_changes_the_tag_of_its_album(client: AsyncClient) -> None:
            created = await add(client)
            url, tag = created.headers["location"], created.headers["etag"]
            changed = await client.post(
                f"{url}/tracks", json={"title": "So What"}, headers={"If-Match": tag}
            )
            assert changed.json()["tracks"] == ["So What"]
            assert (await client.get(url)).headers["etag"] == changed.headers["etag"] != tag
            again, known = {"title": "Blue in Green"}, {"If-Match": tag}
            stale = await client.post(f"{url}/tracks", json=again, headers=known)
            assert stale.status_code == 412
            known = {"If-None-Match": changed.headers["etag"]}
            assert (await client.get(url, headers=known)).status_code == 304


        async def test_files_are_uploaded(client: AsyncClient) -> None:
            url = (await add(client)).headers["location"]
            cover = await client.put(f"{url}/cover", files={"cover": b"x" * 2_000_000})
            assert cover.json() == {"bytes": 2_000_000}
            large = await client.put(f"{url}/cover", files={"cover": b"x" * 5_000_001})
            assert large.status_code == 413
            recording = await client.put(f"{url}/recording", content=b"x" * 6_000_000)
            assert recording.json() == {"bytes": 6_000_000}


        async def test_what_is_published_needs_no_account(
            client: AsyncClient, other_client: AsyncClient, anonymous: AsyncClient
        ) -> None:
            item = (await client.post("/items", json={"title": "Blue", "price": 9.5})).json()
            url = (await add(client, item_id=item["id"])).headers["location"]
            done = await client.put(f"{url}/publication", json={"slug": "blue"})
            assert done.status_code == 204
            published = await anonymous.get("/published-albums/blue")
            assert published.json() == {"title": "Kind of Blue", "price": 9.5}
            other = (await add(other_client, item_id=item["id"])).headers["location"]
            taken = await other_client.put(f"{other}/publication", json={"slug": "blue"})
            assert taken.status_code == 409
            await other_client.put(f"{other}/publication", json={"slug": "red"})
            assert (await anonymous.get("/published-albums/red")).json()["price"] is None


        async def test_genres_are_everybodys(client: AsyncClient) -> None:
            assert "jazz" in (await client.get("/genres")).json()["genres"]
            unknown = await client.post("/albums", json=EXAMPLE | {"genre": "noise"})
            assert unknown.status_code == 422


        async def test_changes_are_streamed(client: AsyncClient) -> None:
            async with open_events(client, "/albums/events") as lines:
                assert await anext(lines) == "data: 0"
                await add(client)
                assert await anext(lines) == "data: 1"


        async def test_a_websocket_answers_each_message(client: AsyncClient) -> None:
            await add(client)
            async with open_websocket(client, "/albums/live") as socket:
                await socket.send_text("hello")
                assert await socket.receive_json(10) == {"title": "hello", "albums": 1}
    ''',
}
"""The files of `albums`, except its migration and its part of the API document."""
