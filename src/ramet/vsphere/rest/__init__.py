"""The automation API: /api, its older twin /rest, and the JSON-RPC that VMware's own SDK speaks, from one table."""
