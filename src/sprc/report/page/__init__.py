"""The search page: a reference, a sentence, the photographs that fit, turn after turn. `serve_page` serves it."""

from sprc.report.page.server import serve_page as serve_page
