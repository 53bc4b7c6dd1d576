"""What users publish: an account is deleted. Who owns rows of it deletes them."""

from shared.db.changes import Topic

account_changes = Topic("accounts")
