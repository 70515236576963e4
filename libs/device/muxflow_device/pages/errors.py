"""What can be wrong with a page."""

from __future__ import annotations


class PageError(Exception):
    """A page is missing, or is not what it must be."""


class PageInUseError(PageError):
    """Another process writes this page: there is one writer each."""


class PageLostError(PageError):
    """The file under an open page was removed or truncated. Close it and open it anew."""
