"""What tests of pages in a browser share."""

from __future__ import annotations

from typing import Any

OWN = ("file:", "data:", "blob:")
"""Beginnings of addresses that need no network."""


def faults_of(page: Any) -> list[str]:
    """A list that fills with what a page of Playwright complains of, and with what it asks the network for."""
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("request", lambda request: None if request.url.startswith(OWN) else faults.append(request.url))
    return faults
