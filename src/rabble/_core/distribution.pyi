"""Distribution: what happens per connection, and what other nodes send besides envelopes."""

__all__: list[str] = []
