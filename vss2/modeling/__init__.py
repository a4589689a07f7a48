"""Networks and sessions."""
