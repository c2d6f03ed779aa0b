"""The boundary: threads that do the I/O which processes must not do."""

from rabble.services.mailbox import Mailbox
from rabble.services.service import Service, ServiceHandler

__all__ = ["Mailbox", "Service", "ServiceHandler"]
