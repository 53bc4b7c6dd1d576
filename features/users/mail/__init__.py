"""Mail to accounts: the outbox, its delivery, the texts and the tokens in them."""
