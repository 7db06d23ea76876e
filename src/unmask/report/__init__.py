"""The report of a study: reads artifacts only, writes one self-contained page and its figures."""

from __future__ import annotations

from unmask.report.evidence import Evidence, read_evidence
from unmask.report.html import render, write_report

__all__ = ["Evidence", "read_evidence", "render", "write_report"]
