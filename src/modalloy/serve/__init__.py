"""The service: searches over HTTP, and a page in the browser."""
