"""A request as one HTML file to read, print and pass on: what was asked, what each device answered, who acted.

:func:`gather` asks the operator API, :func:`request_page` makes the page; both are the same for a coordinator on
this machine and for one elsewhere.
"""

from clue_coordinator.request_report._gather import Gathered, gather
from clue_coordinator.request_report._page import request_page

__all__ = ["Gathered", "gather", "request_page"]
