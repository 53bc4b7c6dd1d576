"""The declaration of users, for the kernel."""

from features.users.accounts.changes import account_changes
from features.users.accounts.deletion import delete_records, remove_deleted_accounts
from features.users.authentication import authenticate, lock_access, recognize
from features.users.commands import commands
from features.users.demo import demo
from features.users.events.tasks import delete_old_events
from features.users.mail.delivery import delete_dead_letters, deliver_mail
from features.users.passwords.tasks import send_password_resets
from features.users.router import router
from features.users.sessions.tasks import purge_expired_sessions
from features.users.settings import UsersSettings
from features.users.state import lifespan
from shared.auth import Authenticator
from shared.db.changes import Subscription
from shared.feature import Feature
from shared.problems import Conflict, Unauthorized

feature = Feature(
    name="users",
    router=router,
    authenticator=Authenticator(
        authenticate=authenticate,
        recognize=recognize,
        lock_access=lock_access,
        token_url="auth/token",
    ),
    scopes={
        "users:self": "Read and change your own account",
        "users:admin": "Administer accounts; for administrators alone",
    },
    constraints={
        "uq_users_email": Conflict("An account with this email already exists"),
        "uq_identities_issuer_subject": Conflict("This identity is linked already"),
        # The account was deleted while one of its requests was running:
        "fk_account_events_user_id": Unauthorized("User not found"),
        "fk_api_keys_user_id": Unauthorized("User not found"),
        "fk_identities_user_id": Unauthorized("User not found"),
        "fk_sessions_user_id": Unauthorized("User not found"),
    },
    settings=UsersSettings,
    lifespan=lifespan,
    tasks=(deliver_mail, send_password_resets, purge_expired_sessions, remove_deleted_accounts),
    periodic_tasks=(delete_dead_letters, delete_old_events),
    subscriptions=(Subscription(account_changes, delete_records, outbox="users_accounts"),),
    commands=commands,
    demo=demo,
)
