"""A report as one HTML page without external resource or script."""

from __future__ import annotations

from html import escape

from transom.audit.report import Report


def page(report: Report) -> str:
    """The page; everything in it is escaped."""
    return f"<!doctype html><title>Audit</title><h1>{escape(report.verdict)}</h1>"
