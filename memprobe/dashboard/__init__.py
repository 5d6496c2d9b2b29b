"""A study as one HTML page that opens from disk: rooms, explorer, page, and a server that keeps it new."""

from memprobe.dashboard.prompt import write_prompt
from memprobe.dashboard.writing import dashboard_text, write_dashboard, write_report

__all__ = ["dashboard_text", "write_dashboard", "write_prompt", "write_report"]
