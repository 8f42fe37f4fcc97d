"""Results for people: a self-contained page, and tables for the terminal."""

from modalloy.report.content import AttentionExample, QueryExample, ReportContent, WordExample
from modalloy.report.page import render_report, write_report
from modalloy.report.table import differences_table, print_report, systems_table

__all__ = [
    "AttentionExample",
    "QueryExample",
    "ReportContent",
    "WordExample",
    "differences_table",
    "print_report",
    "render_report",
    "systems_table",
    "write_report",
]
